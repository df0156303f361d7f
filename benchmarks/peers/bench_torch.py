"""The comparisons of `fastmixer bench --against torch` under pytest-benchmark, a group each: ours, and the peer's modes."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from fastmixer.bench.peers import torch_peer

CASES = [
    pytest.param(one, mode, id=f"{one.group}: {one.name} [{mode}]")
    for one in torch_peer.comparisons()
    if one.unit == "seconds"
    for mode in ("ours", *one.theirs)
]


@pytest.mark.parametrize(("comparison", "mode"), CASES)
def bench_torch(benchmark, comparison, mode):
    benchmark.group = f"{comparison.group}: {comparison.name}"
    call = (comparison.ours if mode == "ours" else comparison.theirs[mode])()
    call()
    benchmark.pedantic(call, rounds=3)
