"""Checkpoints: complete or not there, whatever happens; damage is named; kill -9 at any moment costs nothing but time."""

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.train import checkpoint
from fastmixer.train.checkpoint import list_checkpoints, restore_checkpoint, save_checkpoint
from fastmixer.weights import files

FILES = {"config.json", "model.safetensors", "tokenizer.json", "optimizer.safetensors", "state.json"}


@pytest.fixture
def saved(tmp_path, new_model):
    """(run, model, optimizer) with checkpoints of steps 1 and 2."""
    model = new_model()
    optimizer = fm.AdamW(model.parameters)
    for step in (1, 2):
        model.parameters.gradients_data[:] = np.random.default_rng(step).standard_normal(model.parameters.size)
        optimizer.step()
        save_checkpoint(tmp_path, step, model, optimizer, {"at": step}, keep=2)
    return tmp_path, model, optimizer


def test_everything_comes_back_bit_for_bit(saved, new_model):
    run, model, optimizer = saved
    other = new_model()
    again = fm.AdamW(other.parameters)
    assert restore_checkpoint(run, other, again) == (2, {"at": 2})
    assert np.array_equal(other.parameters.data, model.parameters.data) and again.step_count == 2
    assert np.array_equal(again.m, optimizer.m) and np.array_equal(again.v, optimizer.v)
    assert {path.name for path in list_checkpoints(run)[-1].iterdir()} == FILES


def test_the_last_are_kept_and_a_checkpoint_is_a_model(saved):
    run, model, optimizer = saved
    save_checkpoint(run, 3, model, optimizer, {}, keep=2)
    assert [path.name for path in list_checkpoints(run)] == ["step-00000002", "step-00000003"]
    assert np.array_equal(fm.load(run).parameters.data, model.parameters.data)
    assert np.array_equal(fm.load(list_checkpoints(run)[0]).parameters.data, model.parameters.data)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("damage", "text"), [(_cut, "must have"), (_flip, "is damaged: its hash is not the one in state.json"), (Path.unlink, "is missing")]
)  # fmt: skip
def test_damage_is_named(saved, new_model, name, damage, text):
    run, *_ = saved
    path = list_checkpoints(run)[-1] / name
    damage(path)
    model = new_model()
    before = model.parameters.data.copy()
    with pytest.raises(ValueError, match=f"{path} {text}"):
        restore_checkpoint(run, model, fm.AdamW(model.parameters))
    assert np.array_equal(model.parameters.data, before)


def test_a_state_that_is_not_one(saved, new_model):
    run, model, optimizer = saved
    state = list_checkpoints(run)[-1] / "state.json"
    for content, text in (("{", "is not JSON"), ("[]", "must hold a JSON object"), ("{}", "field 'step' is missing")):
        state.write_text(content)
        with pytest.raises(ValueError, match=text):
            restore_checkpoint(run, model, optimizer)
    with pytest.raises(FileNotFoundError, match="has no checkpoint to resume from"):
        restore_checkpoint(run / "absent", model, optimizer)


@pytest.mark.parametrize("where", ["write_tensors", "sync"])
def test_a_full_disk_leaves_the_older_checkpoints(saved, monkeypatch, where):
    run, model, optimizer = saved

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint if where == "write_tensors" else files, where, full)
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint(run, 3, model, optimizer, {}, keep=1)
    assert [path.name for path in list_checkpoints(run)] == ["step-00000001", "step-00000002"]
    assert len(list((run / "checkpoints").iterdir())) == 2
    monkeypatch.undo()
    assert restore_checkpoint(run, model, optimizer) == (2, {"at": 2})


RUN = textwrap.dedent("""
    import sys
    from pathlib import Path
    import fastmixer as fm
    from fastmixer.data import open_dataset
    from fastmixer.model import ModelConfig
    from fastmixer.train.checkpoint import list_checkpoints

    run, data = Path(sys.argv[1]), Path(sys.argv[2])
    fm.set_threads(2)
    print("ready", flush=True)
    if list_checkpoints(run):
        trainer = fm.Trainer.resume(run, progress=False)
    else:
        tokenizer = fm.Tokenizer.load(data.parent)
        config = ModelConfig(vocab=tokenizer.vocab_size, context=8, dim=16, layers=2, heads=2, hidden=32, dropout=0.1)
        trainer = fm.Trainer(
            fm.Transformer(config, seed=1, tokenizer=tokenizer), tokenizer, open_dataset(data), folder=run, steps=240,
            batch=2, time=8, accumulate=2, warmup=5, evaluate_every=50, evaluate_batches=2, save_every=2, progress=False,
        )
    trainer.fit()
    print("done", flush=True)
""")


def test_kill_9_at_twenty_moments_costs_no_bit(tmp_path, dataset, tokenizer):
    """One run is killed 20 times, at random moments after work began, and resumed; one is left alone: the same weights."""
    tokenizer.save(dataset.folder.parent)
    environment = {**os.environ, "FASTMIXER_KERNELS": "auto"}

    def start(run):
        command = [sys.executable, "-c", RUN, str(run), str(dataset.folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    began = time.monotonic()
    straight = start(tmp_path / "straight")
    output, errors = straight.communicate(timeout=120)
    assert output == "done\n", errors
    seconds = time.monotonic() - began

    moments, kills, run = random.Random(7), 0, tmp_path / "killed"
    while kills < 20:
        process = start(run)
        try:
            output, errors = process.communicate(timeout=moments.uniform(0.005, 0.25 * seconds))
            assert output == "done\n", errors  # a resume may find little left to do: begin anew, and keep counting
            run = tmp_path / f"killed-{kills}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
    output, errors = start(run).communicate(timeout=120)
    assert output == "done\n", errors

    for name in ("model.safetensors", "optimizer.safetensors"):
        expected, got = (list_checkpoints(folder)[-1] / name for folder in (tmp_path / "straight", run))
        assert got.read_bytes() == expected.read_bytes(), name
