"""What a timing says: medians, ratios to NumPy, the share of the right limit, targets."""

import numpy as np
import pytest

from fastmixer.bench import runner, table
from fastmixer.bench.runner import Timing
from fastmixer.bench.workload import Workload
from fastmixer.bench.workloads import LINEAR_SHAPES, ops, workloads

NAMES = ["reference", "jit", "native-x86_64_v3"]


def _timing(flops=0.0, moved=0.0, target=None, native=0.1):
    workload = Workload("matmul", "a product", lambda rng: lambda: None, flops, moved, target=target)
    seconds = {"reference": 0.4, "jit": 0.8, "native-x86_64_v3": native}
    return Timing(workload, seconds, dict.fromkeys(NAMES, 0.0), peak_flops=1e10, bandwidth=1e9)


def test_ratio_share_and_target():
    timing = _timing(flops=9e8, target=("peak", 0.8))
    assert timing.ratio("native-x86_64_v3") == pytest.approx(4) and timing.ratio("jit") == pytest.approx(0.5)
    assert timing.share("native-x86_64_v3") == (pytest.approx(0.9), "FMA")
    assert timing.reaches_target() and not _timing(flops=7e8, target=("peak", 0.8)).reaches_target()
    assert _timing(moved=5e7).share("native-x86_64_v3") == (pytest.approx(0.5), "memory")
    assert _timing(flops=1e8, moved=5e7).share("native-x86_64_v3")[1] == "memory"  # the larger time is the floor
    assert not _timing(flops=1, target=("ratio", 5)).reaches_target() and _timing(flops=1).reaches_target() is None


def test_a_row_and_its_header_line_up():
    header = table.header(NAMES).splitlines()[0]
    row = table.row(_timing(flops=9e8, target=("ratio", 5)), NAMES)
    for title, value in (("NumPy", "400 ms"), ("Numba", "800 ms"), ("Cython", "100 ms"), ("Cython/NumPy", "4.0x"), ("of peak", "90%")):
        assert row.index(value) + len(value) == header.index(title) + len(title), title
    assert row.endswith(">= 5x NO")


@pytest.mark.parametrize(("seconds", "text"), [(1.234, "1.23 s"), (0.0123, "12.3 ms"), (0.4567, "457 ms"), (5e-6, "5 us"), (2e-8, "20 ns")])
def test_durations(seconds, text):
    assert table._duration(seconds) == text


def test_every_named_workload_is_there():
    names = [(workload.op, workload.name) for workload in workloads()]
    assert len(set(names)) == len(names)
    assert ops() == [
        "embedding", "positions", "norm", "matmul", "bfloat16", "feedforward", "attention", "dropout", "cross_entropy", "optimizer",
        "sampling", "search", "step",
    ]  # fmt: skip
    matmuls = {workload.name for workload in workloads("matmul")}
    assert matmuls == {f"{m}x{n}x{k} {part}" for m, n, k in LINEAR_SHAPES for part in ("forward", "d_x", "d_weight")}
    assert all(workload.target == ("peak", 0.80) for workload in workloads("matmul"))
    with pytest.raises(ValueError, match="bench: op must be one of embedding, "):
        workloads("fft")


def test_runs_are_interleaved_and_every_call_counts(monkeypatch):
    order, prepared = [], []
    monkeypatch.setattr(runner, "probe_flops", lambda seconds, precision: 1e9)
    monkeypatch.setattr(runner, "probe_bandwidth", lambda memory, stream: 1e9)
    monkeypatch.setattr(runner, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(runner, "SETTLE_SECONDS", 0.0)

    def prepare(rng):
        from fastmixer.kernels.select import implementation

        name = implementation("matmul")
        prepared.append((name, rng.standard_normal()))
        return lambda: order.append(name)

    names = ["reference", "jit"]
    (timing,) = runner.run([Workload("matmul", "x", prepare, 1.0)], names, rounds=3)
    assert [name for name, _ in prepared] == names and len({value for _, value in prepared}) == 1  # the same inputs
    assert order == ["reference"] * 2 + ["jit"] * 2 + (["reference"] * 2 + ["jit"] * 2) * 3
    assert timing.seconds.keys() == set(names) and np.isfinite(list(timing.seconds.values())).all()
