"""The loop: resumes bit for bit, stops for good reasons only, and says what it did."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.train import trainer as trainer_module
from fastmixer.train.checkpoint import list_checkpoints
from fastmixer.train.metrics import read_metrics
from fastmixer.train.trainer import NonFiniteError


def _weights(trainer):
    return trainer.model.parameters.data.copy(), trainer.optimizer.m.copy(), trainer.optimizer.v.copy()


def _stop_after(trainer, steps):
    """As if Ctrl-C came in that step."""
    one_step = trainer._one_step

    def stopping():
        if trainer.step + 1 == steps:
            trainer._interrupted = True
        return one_step()

    trainer._one_step = stopping


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_resumed_is_as_if_never_stopped(tmp_path, new_trainer, new_model, threads):
    settings = {"steps": 8, "accumulate": 2}
    fm.set_threads(1)
    straight = new_trainer(tmp_path / "straight", new_model(dropout=0.2), **settings)
    straight.fit()
    fm.set_threads(threads)
    first = new_trainer(tmp_path / "stopped", new_model(dropout=0.2), **settings)
    _stop_after(first, 3)
    result = first.fit()
    assert (result.reason, result.step) == ("interrupted", 3)
    second = fm.Trainer.resume(tmp_path / "stopped", progress=False)
    assert second.fit().step == 8
    for expected, got in zip(_weights(straight), _weights(second), strict=True):
        assert np.array_equal(expected, got)
    rows = [[(r["step"], r.get("loss"), r.get("validation_loss")) for r in read_metrics(tmp_path / run)] for run in ("straight", "stopped")]  # fmt: skip
    assert rows[0] == rows[1]


def test_rows_of_an_untied_embedding_resume_too(tmp_path, tokenizer, new_model, new_trainer):
    def model():
        return fm.Transformer(new_model(dropout=0.2, tied_head=False).config, seed=1, tokenizer=tokenizer, sparse_embedding=True)

    straight = new_trainer(tmp_path / "straight", model(), steps=7)
    straight.fit()
    first = new_trainer(tmp_path / "stopped", model(), steps=7)
    _stop_after(first, 4)
    assert first.fit().reason == "interrupted"
    second = fm.Trainer.resume(tmp_path / "stopped", progress=False)
    assert second.model.options["sparse_embedding"] and second.fit().step == 7
    for expected, got in zip(_weights(straight), _weights(second), strict=True):
        assert np.array_equal(expected, got)


def test_a_forced_precision_is_forced_again(tmp_path, tokenizer, new_model, new_trainer, monkeypatch):
    monkeypatch.setattr("fastmixer.model.precision.is_fast", lambda: False)  # where nothing multiplies it fast

    def model():
        how = {"precision": "bfloat16", "force_precision": True}
        return fm.Transformer(new_model().config, seed=1, tokenizer=tokenizer, **how)

    straight = new_trainer(tmp_path / "straight", model(), steps=5)
    straight.fit()
    first = new_trainer(tmp_path / "stopped", model(), steps=5)
    _stop_after(first, 2)
    first.fit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = fm.Trainer.resume(tmp_path / "stopped", progress=False)
    assert second.model.precision == "bfloat16" and second.fit().step == 5
    for expected, got in zip(_weights(straight), _weights(second), strict=True):
        assert np.array_equal(expected, got)

    settings = tmp_path / "stopped" / "run.json"
    written = json.loads(settings.read_text())
    assert written["model"].pop("force_precision") is True  # as runs were written before they told
    settings.write_text(json.dumps(written))
    with pytest.warns(RuntimeWarning, match="going on in float32"):
        assert fm.Trainer.resume(tmp_path / "stopped", progress=False).model.precision == "float32"
    monkeypatch.setattr("fastmixer.model.precision.is_fast", lambda: True)
    assert fm.Trainer.resume(tmp_path / "stopped", progress=False).model.precision == "bfloat16"


def test_what_is_measured_shown_and_kept_changes_no_bit(tmp_path, new_trainer, new_model):
    busy = {"evaluate_every": 1, "evaluate_batches": 7, "sample_every": 2, "save_every": 1, "keep_last": 1}
    idle = {"evaluate_every": 0, "sample_every": 0, "save_every": 0}
    trainers = [new_trainer(tmp_path / str(i), new_model(dropout=0.2), **how) for i, how in enumerate((busy, idle))]
    for trainer in trainers:
        trainer.fit()
    for expected, got in zip(*map(_weights, trainers), strict=True):
        assert np.array_equal(expected, got)
    assert [len(list_checkpoints(trainer.folder)) for trainer in trainers] == [1, 1]


def test_the_loss_falls_and_everything_is_written(tmp_path, new_trainer):
    trainer = new_trainer(tmp_path, steps=60, learning_rate=1e-2, evaluate_every=20, sample_every=30)
    result = trainer.fit()
    assert result.reason == "finished" and result.step == 60 and result.folder == tmp_path
    assert np.mean([loss for _, loss in result.losses[-10:]]) < 0.8 * result.losses[0][1]
    assert [step for step, _ in result.validation_losses] == [0, 20, 40, 60]
    assert result.validation_loss < result.validation_losses[0][1]
    assert result.tokens_per_second > 0 and 0 < result.peak_share < 1
    rows = read_metrics(tmp_path)
    validated = [row for row in rows if "validation_loss" in row]
    assert all(row["perplexity"] == pytest.approx(np.exp(row["validation_loss"])) for row in validated)
    assert [row["step"] for row in rows if "sample" in row] == [30, 60]
    assert {"step", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "peak_share", "seconds"} == set(rows[1])
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["steps"] == 60
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000058", "step-00000060"]
    assert fm.load(tmp_path).generate("a", max_new_tokens=3, seed=0) is not None


def test_accumulated_batches_are_one_larger_batch(tmp_path, new_trainer):
    one = new_trainer(tmp_path / "one", batch=4, accumulate=1)
    two = new_trainer(tmp_path / "two", batch=2, accumulate=2)
    losses = [loss for trainer in (one, two) for _, loss in trainer.fit().losses]
    assert losses[:6] == pytest.approx(losses[6:], abs=2e-6)
    np.testing.assert_allclose(one.model.parameters.data, two.model.parameters.data, atol=2e-5)


def test_early_stop(tmp_path, new_trainer):
    result = new_trainer(tmp_path, steps=50, learning_rate=0.0, min_learning_rate=0.0, evaluate_every=2, patience=3).fit()
    assert (result.reason, result.step) == ("early stop", 6)
    assert list_checkpoints(tmp_path)[-1].name == "step-00000006"


@pytest.mark.parametrize("stopped_at", [0, 1, 3, 5])
def test_an_early_stop_comes_at_the_same_step_after_a_resume(tmp_path, new_trainer, stopped_at):
    settings = {"steps": 50, "learning_rate": 0.0, "min_learning_rate": 0.0, "evaluate_every": 2, "patience": 3}
    first = new_trainer(tmp_path, **settings)
    if stopped_at == 0:
        first._interrupted = True  # while the first evaluation runs
    else:
        _stop_after(first, stopped_at)
    assert (first.fit().reason, first.step) == ("interrupted", stopped_at)
    result = fm.Trainer.resume(tmp_path, progress=False).fit()
    assert (result.reason, result.step) == ("early stop", 6)
    assert [row["step"] for row in read_metrics(tmp_path) if "validation_loss" in row] == [0, 2, 4, 6]


def test_a_run_that_stopped_early_stays_stopped(tmp_path, new_trainer):
    settings = {"steps": 50, "learning_rate": 0.0, "min_learning_rate": 0.0, "evaluate_every": 2, "patience": 3}
    new_trainer(tmp_path, **settings).fit()
    before = fm.Transformer.load(tmp_path).parameters.data.copy()
    result = fm.Trainer.resume(tmp_path, progress=False).fit()
    assert (result.reason, result.step) == ("early stop", 6) and not result.losses
    assert np.array_equal(fm.Transformer.load(tmp_path).parameters.data, before)
    assert fm.Trainer.resume(tmp_path, progress=False, patience=5).fit().step > 6  # unless it is given more of it


def test_nan_stops_and_overwrites_nothing(tmp_path, new_trainer):
    trainer = new_trainer(tmp_path, steps=9)
    one_step = trainer._one_step

    def poisoned():
        if trainer.step == 4:
            trainer.model.parameters["layers.1.feedforward.up.weight"][3, 3] = np.nan
        return one_step()

    trainer._one_step = poisoned
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit()
    last = list_checkpoints(tmp_path)[-1]
    assert last.name == "step-00000004"
    assert re.fullmatch(
        rf"step 5: the loss is nan; first at: .*layers\.1\.feedforward.*\. Nothing was overwritten; "
        rf"the last checkpoint is {re.escape(str(last))}",
        str(caught.value),
    ), str(caught.value)
    assert np.isfinite(fm.Transformer.load(tmp_path).parameters.data).all()
    straight = new_trainer(tmp_path / "straight", steps=9)
    straight.fit()
    again = fm.Trainer.resume(tmp_path, progress=False)
    assert again.fit().step == 9
    assert np.array_equal(again.model.parameters.data, straight.model.parameters.data)


def test_a_gradient_that_is_not_finite_stops_before_any_weight_moves(tmp_path, new_trainer):
    trainer = new_trainer(tmp_path, steps=9, save_every=0)
    forward_backward = trainer.model.forward_backward

    def poisoned(*arguments, **options):
        loss = forward_backward(*arguments, **options)
        if trainer.step == 2:
            trainer.model.parameters.gradient("layers.0.attention.qkv.weight")[1, 2] = np.inf
            poisoned.before = _weights(trainer)
        return loss

    trainer.model.forward_backward = poisoned
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit()
    assert str(caught.value) == (
        "step 3: the gradients' norm is not finite; first at: gradient of layers.0.attention.qkv.weight. "
        "Nothing was overwritten; no checkpoint was written"
    )
    for expected, got in zip(poisoned.before, _weights(trainer), strict=True):
        assert np.array_equal(expected, got)
    assert not list_checkpoints(tmp_path)


def test_a_full_disk_names_the_checkpoint_that_is_left(tmp_path, new_trainer, monkeypatch):
    trainer = new_trainer(tmp_path)
    real = trainer_module.save_checkpoint

    def full(run, step, *rest):
        if step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(run, step, *rest)

    monkeypatch.setattr(trainer_module, "save_checkpoint", full)
    kept = tmp_path / "checkpoints" / "step-00000002"
    with pytest.raises(OSError, match=rf"step 4 could not be saved \(No space left on device\); the checkpoint {kept} is intact"):
        trainer.fit()
    monkeypatch.undo()
    assert fm.Trainer.resume(tmp_path, progress=False).fit().step == 6


def _heed_signals():
    """As a process begins that nobody told to ignore them (nohup does)."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, number, status):
    """So do the signals by which a system ends a process."""
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 400)
    run = tmp_path / "run"
    command = [sys.executable, "-c", "from fastmixer.cli.main import main; main()", "train", str(text), "--out", str(run)]
    options = ["--tokenizer", "characters", "--context", "16", "--steps", "100000", "--save-every", "0", "--no-progress"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_signals
    )
    try:
        deadline = time.monotonic() + 60
        while len(read_metrics(run)) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == status, errors
    match = re.search(r"^interrupted: step (\d+) is finished and saved; go on with: fastmixer train --out (\S+) --resume$", output, re.M)
    assert match and match[2] == str(run), output
    assert list_checkpoints(run)[-1].name == f"step-{int(match[1]):08d}"
    assert read_metrics(run)[-1]["step"] == int(match[1]) and "Traceback" not in errors


def test_measuring_the_machine_is_no_part_of_a_step(tmp_path, new_trainer, monkeypatch):
    now = [0.0]

    def after(seconds, found):
        now[0] += seconds
        return found

    monkeypatch.setattr(trainer_module, "clock", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr("fastmixer.ops.profile.measured_bandwidth", lambda *what: after(100, 1e12))
    trainer = new_trainer(tmp_path, steps=8, evaluate_every=0)
    monkeypatch.setattr(trainer, "_one_step", lambda: after(0.5, (1.0, 1.0, 1.0)))
    result = trainer.fit()
    assert result.profile.steps == trainer_module.PROFILED_STEPS and now[0] >= 100
    assert {row["seconds"] for row in read_metrics(tmp_path) if "seconds" in row} == {0.5}


def test_a_missing_text_leaves_no_folder(tmp_path, new_model, tokenizer):
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path / 'none.txt'} is not a file$"):
        fm.Trainer(new_model(), tokenizer, [tmp_path / "none.txt"], folder=tmp_path / "run", time=8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"steps": 0}, "TrainSettings: steps must be >= 1; got 0"),
        ({"steps": -3}, "TrainSettings: steps must be >= 1; got -3"),
        ({"steps": True}, "TrainSettings: steps must be an integer; got bool"),
        ({"accumulate": 0}, "TrainSettings: accumulate must be >= 1; got 0"),
        ({"keep_last": 0}, "TrainSettings: keep_last must be >= 1; got 0"),
        ({"warmup": -1}, "TrainSettings: warmup must be >= 0; got -1"),
        ({"seed": -1}, "TrainSettings: seed must be >= 0; got -1"),
        ({"clip_norm": 0}, "TrainSettings: clip_norm must be > 0; got 0"),
        ({"learning_rate": float("nan")}, "TrainSettings: learning_rate must be >= 0; got nan"),
        ({"batch": 2.5}, "TrainSettings: batch must be an integer; got float"),
        ({"learning_rate": -1}, "TrainSettings: learning_rate must be >= 0; got -1"),
        ({"schedule": "step"}, "TrainSettings: schedule must be one of 'cosine', 'linear', 'constant'; got 'step'"),
        ({"time": 9}, "Trainer: time 9 is longer than the model's context of 8"),
    ],
)
def test_bad_settings(tmp_path, new_trainer, settings, text):
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(text)}$"):
        new_trainer(tmp_path, **settings)


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path, new_trainer):
    new_trainer(tmp_path, steps=1).fit()
    with pytest.raises(FileExistsError, match="already holds a run; resume it, or choose another folder"):
        new_trainer(tmp_path)


def test_text_shorter_than_the_context(tmp_path, new_model, tokenizer):
    text = tmp_path / "short.txt"
    text.write_text("Alice")
    with pytest.raises(ValueError, match=r"a context of 8 needs at least 9\. Give more text or a shorter context$"):
        fm.Trainer(new_model(), tokenizer, text, folder=tmp_path / "run", time=8)


def test_resume_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fm.Trainer.resume(tmp_path / "absent")
