"""The peak of resident memory sees what was touched, from /proc and where there is none."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastmixer.train import memory

MEGABYTE = 2**20
RISE = """
import numpy as np
from fastmixer.train.memory import peak_memory
before = peak_memory()
np.ones(64 * 2**20, np.uint8)  # let go at once: the peak stays
print(peak_memory() - before)
"""


def test_it_sees_what_was_touched():
    found = subprocess.run([sys.executable, "-c", RISE], capture_output=True, text=True, check=True)
    assert 60 * MEGABYTE < int(found.stdout) < 80 * MEGABYTE


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_without_proc_the_system_call_is_asked(monkeypatch, platform):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(memory, "STATUS", Path("/nowhere/status"))
    monkeypatch.setattr(memory.sys, "platform", platform)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert memory.peak_memory() == peak * {"linux": 1024, "darwin": 1}[platform]


def test_proc_and_the_system_call_agree_on_the_unit(monkeypatch):
    array = np.ones(32 * MEGABYTE, np.uint8)
    told = memory.peak_memory()
    assert array.nbytes < told < 2**40
    monkeypatch.setattr(memory, "STATUS", Path("/nowhere/status"))
    assert memory.peak_memory() >= 0.9 * told  # the system call may begin at the parent's peak
