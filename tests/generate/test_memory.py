"""What would not fit is refused, and what is free goes back."""

import ctypes
import subprocess
import sys

import pytest

from fastmixer.generate import memory


def test_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 2_048_000_000)
    memory.require_memory("a cache", 2_000_000_000, "ask for less")
    with pytest.raises(MemoryError, match=r"^a cache takes 3\.00 GB, but 2\.05 GB are available; ask for less$"):
        memory.require_memory("a cache", 3_000_000_000, "ask for less")


def test_where_nothing_says_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    memory.require_memory("anything", 1 << 60, "")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_freed_memory_goes_back_to_the_system():
    code = """
from pathlib import Path
from fastmixer.generate.memory import return_free_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

blocks = [bytearray(b"x" * 5000) for _ in range(20000)]
last = blocks.pop()  # it keeps the heap's end where it is
del blocks
before = resident()
return_free_memory()
print(before - resident())
"""
    freed = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert freed > 50e6
