"""How much memory there is, by what Linux says of the system and of control groups."""

import ctypes
import subprocess
import sys

import pytest

from fastmixer.generate import memory


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Write the files that Linux would show."""

    def write(files, own="0::/"):
        for name, text in {"meminfo": "MemTotal: 9 kB\nMemAvailable:   1000 kB\n", **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "own").write_text(own + "\n")
        monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
        monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")

    return write


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({}, "0::/", 1000 * 1024),
        ({"cgroup/memory.max": "max\n", "cgroup/memory.current": "5\n"}, "0::/", 1000 * 1024),
        ({"cgroup/memory.max": "900\n", "cgroup/memory.current": "500\n"}, "0::/", 400),
        (
            {"cgroup/memory.max": "900", "cgroup/memory.current": "500", "cgroup/memory.stat": "file 300\ninactive_file 200\n"},
            "0::/", 600,
        ),
        ({"cgroup/a/memory.max": "900", "cgroup/a/memory.current": "500"}, "0::/a/b", 400),
        ({"cgroup/memory.max": "100", "cgroup/memory.current": "500"}, "0::/", 0),
        (
            {"cgroup/memory/x/memory.limit_in_bytes": "800", "cgroup/memory/x/memory.usage_in_bytes": "100"},
            "4:cpu,memory:/x\n0::/", 700,
        ),
    ],
)  # fmt: skip
def test_available_memory(system, files, own, expected):
    system(files, own)
    assert memory.available_memory() == expected


def test_nothing_says(system, tmp_path, monkeypatch):
    system({})
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "absent")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "absent")
    assert memory.available_memory() is None
    memory.require_memory("anything", 1 << 60, "")


def test_too_much_is_refused(system):
    system({"meminfo": "MemAvailable: 2000000 kB\n"})
    memory.require_memory("a cache", 2_000_000_000, "ask for less")
    with pytest.raises(MemoryError, match=r"^a cache takes 3\.00 GB, but 2\.05 GB are available; ask for less$"):
        memory.require_memory("a cache", 3_000_000_000, "ask for less")


def test_this_machine():
    available = memory.available_memory()
    assert available is None or available > 1 << 20


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
