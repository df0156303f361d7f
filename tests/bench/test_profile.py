"""The profile of a step: its work is the model's, its times add up, and nothing stays behind."""

import numpy as np
import pytest
from click.testing import CliRunner

import fastmixer as fm
from fastmixer import chart
from fastmixer.bench.profile import STEPS, profile_step
from fastmixer.bench.workload import Workload
from fastmixer.cli.main import main
from fastmixer.kernels.select import implementations, kernels, use_kernels
from fastmixer.model import ModelConfig
from fastmixer.ops import profile as module
from fastmixer.ops.profile import REST, Profile, profiled

LLAMA = {"kv_heads": 2, "norm": "rmsnorm", "positions": "rotary", "activation": "silu", "gated": True, "tied_head": False}


def step(precision="float32", **changes):
    """A workload of a small model's step, and its config."""
    config = ModelConfig(**{"vocab": 97, "context": 32, "dim": 64, "layers": 2, "heads": 4, **changes})

    def prepare(rng):
        model = fm.Transformer(config, seed=0, precision=precision, force_precision=True)
        optimizer = fm.AdamW(model.parameters)
        ids = rng.integers(0, 97, (2, 33))

        def call():
            model.forward_backward(ids[:, :-1], ids[:, 1:])
            optimizer.step()

        return call

    return Workload("step", "a small step", prepare), config


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, LLAMA], ids=["gpt2", "llama"])
def test_flops_are_the_model_s(precision, changes):
    workload, config = step(precision, **changes)
    found = profile_step(workload)
    assert found.steps == STEPS
    flops = sum(row.flops for row in found.rows()) / STEPS
    # 2.5 products a backward of attention, of which the model counts two: a recomputed one is work, but not progress
    assert flops == pytest.approx(config.training_flops(2, 32), rel=0.03)


def test_times_add_up_and_limits_are_named():
    found = profile_step(step()[0])
    rows = found.rows()
    assert sum(row.seconds for row in rows) == pytest.approx(found.seconds)
    assert [row.label for row in rows][-1] == REST and rows[-1].seconds > 0
    assert [row.seconds for row in rows[:-1]] == sorted((row.seconds for row in rows[:-1]), reverse=True)
    limits = {row.label: row.limit for row in rows}
    assert limits["head and loss"] == "FMA" and limits["AdamW"] == "memory"
    assert all(row.floor > 0 for row in rows[:-1]), [row.label for row in rows if not row.floor]


def test_every_kernel_of_a_step_has_a_cost():
    """Nothing is listed under a kernel's own name, "op: function", for want of a rule."""
    for precision in ("float32", "bfloat16"):
        for changes in ({"dropout": 0.1}, LLAMA):
            labels = [row.label for row in profile_step(step(precision, **changes)[0]).rows()]
            assert not [label for label in labels if ":" in label]


def test_shares_of_a_known_clock(monkeypatch):
    monkeypatch.setattr(module, "measured_peak_flops", lambda precision="float32": 1e9)
    monkeypatch.setattr(module, "measured_bandwidth", lambda stream: {"read": 1e6, "update": 2e6}[stream])
    profile = Profile()
    x, weight, out = (np.zeros(shape, np.float32) for shape in ((10, 20), (20, 30), (10, 30)))
    profile.add("matmul", "linear_forward", (x, weight, None, None, None, None, out, False, 0), 0.01)
    (row,) = profile.by_label.values()
    assert (row.flops, row.bytes) == (2 * 10 * 20 * 30, 4 * 600)
    assert row.floor == pytest.approx(2400 / 1e6) and row.limit == "memory" and row.share == pytest.approx(0.24)


def test_bytes_that_are_written_too_have_a_limit_of_their_own(monkeypatch):
    monkeypatch.setattr(module, "measured_peak_flops", lambda precision="float32": 1e9)
    monkeypatch.setattr(module, "measured_bandwidth", lambda stream: {"read": 1e6, "update": 2e6}[stream])
    flat, numbers = np.zeros(1000, np.float32), (1e-3, 0.9, 0.95, 1e-8, 0.1, 1, 1.0)
    for zeroed, moved in ((True, 8), (False, 7)):  # the gradient is read, and written only where it is zeroed
        profile = Profile()
        profile.add("optimizer", "adamw", (flat, flat, flat, flat, *numbers, zeroed), 0.02)
        (row,) = profile.by_label.values()
        assert row.bytes == moved * 4000 and row.floor == pytest.approx(moved * 4000 / 2e6) and row.limit == "memory"
    profile.add("optimizer", "squared_norm", (flat,), 0.02)
    assert profile.by_label["gradients' norm"].floor == pytest.approx(4000 / 1e6)


def test_nothing_stays_behind():
    before = {name: kernels("matmul").__name__ for name in implementations("matmul")}
    with pytest.raises(ZeroDivisionError), profiled(Profile()):
        assert type(kernels("matmul")).__name__ == "_Timed"
        raise ZeroDivisionError
    for name in before:
        with use_kernels(name):
            assert type(kernels("matmul")).__name__ == "module"


def test_the_table_fits_and_takes_short_rows_together():
    found = profile_step(step()[0])
    lines = found.table(most=6).splitlines()
    assert len(lines) == 8 and max(map(len, lines)) <= 90
    assert lines[5].startswith("other kernels") and lines[6].startswith(REST) and lines[7].startswith("whole step")
    assert len(found.table().splitlines()) == len(found.rows()) + 2


def test_the_chart(tmp_path, monkeypatch):
    found = profile_step(step()[0])
    with pytest.raises(ValueError, match=r"a chart must be a \.png or \.svg file; got .*profile\.jpg$"):
        chart.save_profile(tmp_path / "profile.jpg", found.rows(), found.seconds, found.steps)
    if chart.find_spec("matplotlib"):
        for name, start in (("profile.png", b"\x89PNG"), ("profile.svg", b"<?xml")):
            path = chart.save_profile(tmp_path / name, found.rows(), found.seconds, found.steps)
            assert path.read_bytes().startswith(start)
    monkeypatch.setattr(chart, "find_spec", lambda name: None)
    assert chart.save_profile(tmp_path / "profile.png", found.rows(), found.seconds, found.steps) is None


def test_the_command_takes_a_shape(monkeypatch):
    asked = []
    monkeypatch.setattr("fastmixer.bench.workloads.step_workload", lambda *shape: asked.append(shape) or step()[0])
    result = CliRunner().invoke(main, ["bench", "step", "--profile", "--batch", "1", "--time", "1024"])
    assert result.exit_code == 0, result.output
    assert asked == [(1, 1024, "float32")]
    assert result.output.startswith("where a step goes") and "whole step" in result.output
