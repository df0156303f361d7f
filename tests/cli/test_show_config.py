"""`fastmixer show-config`: what runs here, and how to change it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastmixer import config_report as module
from fastmixer import kernels
from fastmixer.config_report import OPS, config_report
from fastmixer.kernels.select import implementation, native_levels, use_kernels


def test_every_op_and_every_limit(run):
    result = run("show-config")
    assert result.exit_code == 0
    assert {"packed", "decoder", "encoder", "search", "attention"} < set(OPS) and "peak" not in OPS
    assert {path.parent.name for path in Path(kernels.__path__[0]).glob("*/jit.py")} == {*OPS, "peak"}
    for op in OPS:
        assert re.search(rf"\b{op} +{re.escape(implementation(op))}   +\S", result.output, re.M), op
    assert max(map(len, result.output.splitlines())) <= 120
    assert re.search(r"^threads +\d+ ", result.output, re.M)
    assert re.search(r"^peak +\d+ GFLOP/s float32 FMA, measured now$", result.output, re.M)
    assert "FASTMIXER_KERNELS=auto|native|jit|reference" in result.output
    assert re.search(r"^bandwidth +\d+ GB/s read, measured now$", result.output, re.M)


def test_json_says_the_same_and_nothing_else(run):
    result = run("show-config", "--json", "--no-measure")
    assert result.exit_code == 0 and json.loads(result.stdout) == config_report(measure=False)
    measured = json.loads(run("show-config", "--json").stdout)
    assert measured["peak_gflops"] > 1 and measured["bandwidth_gb_per_s"] > 1


def test_without_probes(run):
    output = run("show-config", "--no-measure").output
    assert "peak" not in output and "bandwidth" not in output and "kernels " in output


def why(**variables):
    """What a process of its own says with these variables, for two ops: one that has code at every level, one that has not."""
    environment = {name: value for name, value in os.environ.items() if name not in ("FASTMIXER_KERNELS", "FASTMIXER_ISA")}
    command = [sys.executable, "-c", "from fastmixer.cli.main import main; main()", "show-config", "--json", "--no-measure"]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert list(report["why"]) == list(report["kernels"]) == list(OPS)
    return report["why"]["packed"], report["why"]["norm"]


def test_it_says_why():
    assert why(FASTMIXER_KERNELS="jit") == ("forced by FASTMIXER_KERNELS",) * 2
    assert why(FASTMIXER_KERNELS="reference", FASTMIXER_ISA="portable") == ("forced by FASTMIXER_KERNELS",) * 2


@pytest.mark.skipif("x86_64_v4_vnni" not in native_levels("packed"), reason="no level here that some ops have no code for")
def test_it_says_what_a_level_adds():
    same = "forced by FASTMIXER_ISA (x86_64_v4_vnni adds nothing to it)"
    assert why(FASTMIXER_ISA="x86_64_v4_vnni") == ("forced by FASTMIXER_ISA", same)
    assert why(FASTMIXER_ISA="x86_64_v3", FASTMIXER_KERNELS="native") == ("forced by FASTMIXER_ISA",) * 2
    packed, norm = why(FASTMIXER_KERNELS="native")
    assert packed == "best that this processor runs" and norm.startswith(f"{packed} (x86_64_v4_")


def test_use_kernels_is_a_reason():
    with use_kernels("reference"):
        report = module.config_report(measure=False)
    assert set(report["why"].values()) == {"forced by use_kernels"} and set(report["kernels"].values()) == {"reference"}
    best = native_levels("packed")[0]
    with use_kernels(f"native-{best}"):
        why = module.config_report(measure=False)["why"]
    assert why["packed"] == "forced by use_kernels"
    assert set(why.values()) <= {why["packed"], f"forced by use_kernels ({best} adds nothing to it)"}


def test_reasons_of_a_build_that_is_not_whole(monkeypatch):
    monkeypatch.delenv("FASTMIXER_KERNELS", raising=False)
    monkeypatch.delenv("FASTMIXER_ISA", raising=False)
    monkeypatch.setattr(module, "runnable_levels", lambda: ("x86_64_v4", "x86_64_v3", "portable"))
    assert module._why("norm", "native-x86_64_v4") == "best that this processor runs"
    assert module._why("norm", "native-x86_64_v3") == "best that was built; this processor runs x86_64_v4"
    monkeypatch.setattr(module, "runnable_levels", lambda: ())
    assert module._why("norm", "jit") == "no native kernel was built that this processor runs"
