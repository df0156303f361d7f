"""The dispatch: what the environment forces, and that what is forced and absent raises."""

import os
import subprocess
import sys

import pytest

from fastmixer.kernels import select
from fastmixer.kernels.cpu import runnable_levels
from fastmixer.kernels.levels import LEVELS, level_for, levels_of


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


def test_an_op_without_a_use_for_a_level_runs_as_at_the_one_beneath():
    assert level_for("packed", "x86_64_v4_vnni") == "x86_64_v4_vnni"
    assert level_for("norm", "x86_64_v4_vnni") == level_for("norm", "x86_64_v4_bf16") == "x86_64_v4"
    assert level_for("norm", "x86_64_v4_amx") == "x86_64_v4"
    assert level_for("norm", "x86_64_v3") == "x86_64_v3"


def test_every_processor_has_levels_of_its_own_family():
    assert list(levels_of("x86_64"))[-3:] == ["x86_64_v3", "x86_64_v2", "portable"] == list(levels_of("AMD64"))[-3:]
    assert list(levels_of("arm64")) == list(levels_of("aarch64")) == ["aarch64_dot", "portable"]
    assert list(levels_of("riscv64")) == ["portable"]
    assert {level for machine in ("x86_64", "aarch64") for level in levels_of(machine)} == set(LEVELS)


@pytest.mark.skipif("x86_64_v4_vnni" not in runnable_levels(), reason="no VNNI here")
def test_a_level_that_only_some_ops_have_can_be_forced(monkeypatch):
    monkeypatch.setenv("FASTMIXER_KERNELS", "auto")
    monkeypatch.setenv("FASTMIXER_ISA", "x86_64_v4_vnni")
    assert select._implementation_from_environment("packed") == "native-x86_64_v4_vnni"
    assert select._implementation_from_environment("norm") == "native-x86_64_v4"
    with select.use_kernels("native-x86_64_v4_vnni"):
        assert select.implementation("norm") == "native-x86_64_v4"


def test_a_level_that_this_processor_lacks_is_refused_for_every_op(monkeypatch):
    monkeypatch.setattr(select, "runnable_levels", lambda: ("x86_64_v4", "portable"))
    monkeypatch.setenv("FASTMIXER_KERNELS", "auto")
    monkeypatch.setenv("FASTMIXER_ISA", "x86_64_v4_bf16")
    with pytest.raises(ImportError, match="FASTMIXER_ISA=x86_64_v4_bf16 is not available for norm"):
        select._implementation_from_environment("norm")


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
