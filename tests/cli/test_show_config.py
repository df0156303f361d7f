"""`fastmixer show-config`: what runs here, and how to change it."""

import json
import re

from fastmixer.config_report import config_report
from fastmixer.kernels.select import implementation


def test_every_op_and_every_limit(run):
    result = run("show-config")
    assert result.exit_code == 0
    for op in (
        "embedding",
        "positions",
        "matmul",
        "norm",
        "attention",
        "feedforward",
        "dropout",
        "cross_entropy",
        "optimizer",
        "sampling",
        "search",
    ):
        assert re.search(rf"\b{op} +{re.escape(implementation(op))}$", result.output, re.M), op
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
