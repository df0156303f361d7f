"""The dispatch: what the environment forces, and that what is forced and absent raises."""

import os
import subprocess
import sys

import pytest

from fastmixer.kernels import select
from fastmixer.kernels.cpu import LEVELS, runnable_levels


def run(code, **environment):
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True)


SHOW = "from fastmixer.kernels.select import implementation; print(implementation('peak'))"


@pytest.mark.parametrize("rank", ["jit", "reference"])
def test_a_rank_can_be_forced(rank):
    assert run(SHOW, FASTMIXER_KERNELS=rank, FASTMIXER_ISA="").stdout.strip() == rank


@pytest.mark.parametrize("level", select.native_levels("peak"))
def test_a_level_can_be_forced(level):
    assert run(SHOW, FASTMIXER_KERNELS="auto", FASTMIXER_ISA=level).stdout.strip() == f"native-{level}"


def test_auto_takes_the_best_level():
    levels = select.native_levels("peak")
    expected = f"native-{levels[0]}" if levels else "jit"
    assert run(SHOW, FASTMIXER_KERNELS="auto", FASTMIXER_ISA="").stdout.strip() == expected


def test_unknown_names_are_refused():
    result = run(SHOW, FASTMIXER_KERNELS="fast")
    assert "FASTMIXER_KERNELS must be one of auto, native, jit, reference; got 'fast'" in result.stderr
    result = run(SHOW, FASTMIXER_KERNELS="auto", FASTMIXER_ISA="avx9")
    assert f"FASTMIXER_ISA must be one of {', '.join(LEVELS)}; got 'avx9'" in result.stderr


def test_a_forced_level_that_is_absent_raises(monkeypatch):
    monkeypatch.setattr(select, "runnable_levels", lambda: ("portable",))
    monkeypatch.setenv("FASTMIXER_KERNELS", "auto")
    monkeypatch.setenv("FASTMIXER_ISA", "x86_64_v4")
    with pytest.raises(ImportError, match="FASTMIXER_ISA=x86_64_v4 is not available for peak"):
        select._implementation_from_environment("peak")


def test_forced_native_that_is_absent_raises(monkeypatch):
    monkeypatch.setattr(select, "runnable_levels", lambda: ())
    monkeypatch.setenv("FASTMIXER_KERNELS", "native")
    monkeypatch.setenv("FASTMIXER_ISA", "")
    with pytest.raises(ImportError, match="FASTMIXER_KERNELS=native, but no native kernel of peak was built"):
        select._implementation_from_environment("peak")


def test_auto_without_native_warns_and_takes_jit(monkeypatch):
    monkeypatch.setattr(select, "runnable_levels", lambda: ())
    monkeypatch.setattr(select, "_warned", False)
    monkeypatch.setenv("FASTMIXER_KERNELS", "auto")
    monkeypatch.setenv("FASTMIXER_ISA", "")
    with pytest.warns(RuntimeWarning, match="fastmixer runs on Numba"):
        assert select._implementation_from_environment("peak") == "jit"


def test_levels_come_best_first_and_end_with_portable():
    levels = runnable_levels()
    assert list(levels) == [level for level in LEVELS if level in levels]
    assert not levels or levels[-1] == "portable"


def test_use_kernels_forces_and_restores():
    before = select.implementation("peak")
    with select.use_kernels("reference"):
        assert select.implementation("peak") == "reference"
    assert select.implementation("peak") == before
