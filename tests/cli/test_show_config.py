"""`fastmixer show-config`: what runs here, and how to change it."""

import re

from fastmixer.kernels.select import implementation


def test_every_op_and_every_limit(run):
    result = run("show-config")
    assert result.exit_code == 0
    for op in ("embedding", "positions", "matmul", "norm", "attention", "feedforward", "dropout", "cross_entropy", "optimizer", "sampling"):
        assert re.search(rf"\b{op} +{re.escape(implementation(op))}$", result.output, re.M), op
    assert re.search(r"^threads +\d+ ", result.output, re.M)
    assert re.search(r"^peak +\d+ GFLOP/s float32 FMA, measured now$", result.output, re.M)
    assert "FASTMIXER_KERNELS=auto|native|jit|reference" in result.output
