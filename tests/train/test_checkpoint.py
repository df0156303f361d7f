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
from fastmixer.train.metrics import read_metrics
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
    for which, chosen in ((model, optimizer), (other, again)):
        which.parameters.gradients_data[:] = np.random.default_rng(3).standard_normal(model.parameters.size)
        chosen.step()
    assert np.array_equal(other.parameters.data, model.parameters.data)


def test_the_last_are_kept_and_a_checkpoint_is_a_model(saved):
    run, model, optimizer = saved
    save_checkpoint(run, 3, model, optimizer, {}, keep=2)
    assert [path.name for path in list_checkpoints(run)] == ["step-00000002", "step-00000003"]
    assert np.array_equal(fm.Transformer.load(run).parameters.data, model.parameters.data)
    assert np.array_equal(fm.Transformer.load(list_checkpoints(run)[0]).parameters.data, model.parameters.data)


def test_other_folders_are_no_checkpoints(saved, new_model):
    run, model, optimizer = saved
    for name in ("step-best", "step-00000002.bak", "step-99", ".writing-step-00000009-1", ".writing-old-step-00000002"):
        (run / "checkpoints" / name).mkdir()
    assert [path.name for path in list_checkpoints(run)] == ["step-00000001", "step-00000002"]
    assert restore_checkpoint(run, new_model(), optimizer)[0] == 2
    assert np.array_equal(fm.Transformer.load(run).parameters.data, model.parameters.data)


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


def test_what_cannot_be_read_is_not_called_damaged(saved, new_model, monkeypatch):
    run, model, optimizer = saved

    def broken(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(checkpoint, "_digest", broken)
    with pytest.raises(OSError, match=r"^\[Errno 5\] [^.]*: '[^']*config.json'$"):
        restore_checkpoint(run, model, optimizer)


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


# Saves a checkpoint over and over, killed before its first, second, ... operation on files, until one save is done.
KILLED_SAVES = textwrap.dedent("""
    import os, signal, sys, tempfile
    from pathlib import Path
    import numpy as np
    import fastmixer as fm
    from fastmixer.model import ModelConfig
    from fastmixer.train.checkpoint import clean_up, list_checkpoints, restore_checkpoint, save_checkpoint

    EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree"}
    tokenizer, step = fm.Tokenizer.load(sys.argv[1]), int(sys.argv[2])
    model = fm.Transformer(ModelConfig(vocab=tokenizer.vocab_size, context=8, dim=8, layers=1, heads=1), tokenizer=tokenizer)
    optimizer = fm.AdamW(model.parameters)

    def save(run, step):
        model.parameters.data[:] = optimizer.m[:] = step
        save_checkpoint(run, step, model, optimizer, {"by": os.getpid()}, keep=1)

    def save_until(run, operation):
        def hook(event, arguments):
            nonlocal operation
            if event in EVENTS:
                if operation == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                operation -= 1

        sys.addaudithook(hook)
        save(run, step)
        os._exit(0)

    operation, seen, status = 0, set(), -1
    while status != 0:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder)
            save(run, 1)
            child = os.fork()
            if child == 0:
                save_until(run, operation)
            status = os.waitpid(child, 0)[1]
            assert status in (0, signal.SIGKILL), (operation, status)
            clean_up(run)
            at, state = restore_checkpoint(run, model, optimizer)
            new = state["by"] == child
            seen.add(new)
            assert at == (step if new else 1), (operation, at)
            assert all((model.parameters[name] == at).all() for name in model.parameters), operation
            assert (optimizer.m == at).all(), operation
            assert sorted((run / "checkpoints").iterdir()) == list_checkpoints(run), operation
            for path in list_checkpoints(run):
                assert len(list(path.iterdir())) == 5, (operation, path)
            operation += 1
    assert seen == {False, True}
    print(operation, "saves")
""")


@pytest.mark.parametrize("step", [2, 1])
def test_a_save_killed_before_any_of_its_operations_leaves_whole_checkpoints(tmp_path, tokenizer, step):
    """As a new step (the older one is deleted), and in place of one of the same step."""
    tokenizer.save(tmp_path)
    command = [sys.executable, "-c", KILLED_SAVES, str(tmp_path), str(step)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[0]) > 20


# A training run that waits at every tenth step until it is told to go on: whoever kills it knows about where it is. Each is
# a child of a process that has imported everything and measured the machine: twenty times those were most of a minute.
RUNS = textwrap.dedent("""
    import os
    import sys
    from pathlib import Path
    import fastmixer as fm
    from fastmixer.data import open_dataset
    from fastmixer.model import ModelConfig
    from fastmixer.ops.profile import Profile, profiled
    from fastmixer.train.checkpoint import list_checkpoints

    run, data = Path(sys.argv[1]), Path(sys.argv[2])
    fm.set_threads(2)
    with profiled(Profile()):
        fm.Trainer, fm.Transformer, fm.Tokenizer

    def wait(message):
        print(message, flush=True)
        sys.stdin.readline()

    def train():
        if list_checkpoints(run):
            trainer = fm.Trainer.resume(run, on_message=wait, progress=False)
        else:
            tokenizer = fm.Tokenizer.load(data.parent)
            config = ModelConfig(vocab=tokenizer.vocab_size, context=8, dim=16, layers=2, heads=2, hidden=32, dropout=0.1)
            trainer = fm.Trainer(
                fm.Transformer(config, seed=1, tokenizer=tokenizer), tokenizer, open_dataset(data), folder=run, steps=240,
                batch=2, time=8, accumulate=2, warmup=5, evaluate_every=10, evaluate_batches=2, save_every=2,
                on_message=wait, progress=False,
            )
        trainer.fit()

    for line in sys.stdin:
        if line != "begin\\n":  # a killed child may have left its line
            continue
        child = os.fork()
        if child == 0:
            print(os.getpid(), flush=True)
            train()
            os._exit(0)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
""")
STRETCH, STRETCHES = 10, 24


def test_kill_9_at_twenty_moments_costs_no_bit(tmp_path, dataset, tokenizer):
    """One run is killed at a random moment of each of 20 of its 24 stretches of steps and resumed after each; one is left
    alone: the same weights, moments and metrics."""
    tokenizer.save(dataset.folder.parent)

    def to_the_end(run, killed_in, seconds):
        """Kills once within each stretch of killed_in, up to `seconds` after it began; the newest checkpoint after each kill."""
        command = [sys.executable, "-c", RUNS, str(run), str(dataset.folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as runs:
            left, reached = set(killed_in), []

            def begin():
                runs.stdin.write("begin\n")
                return int(runs.stdout.readline())

            child = begin()
            for _ in range(10 * STRETCHES):
                line = runs.stdout.readline()
                if line == "ended 0\n":
                    return reached
                assert line.startswith("step"), line
                stretch = int(line.split()[1]) // STRETCH
                runs.stdin.write("go on\n")
                if stretch in left:
                    left.remove(stretch)
                    time.sleep(moments.uniform(0, seconds))
                    os.kill(child, signal.SIGKILL)
                    while (line := runs.stdout.readline()).startswith("step"):
                        pass  # it came as far as the next one
                    assert line == f"ended {-signal.SIGKILL}\n"
                    reached += [list_checkpoints(run)[-1].name if list_checkpoints(run) else None]
                    child = begin()
            raise AssertionError(f"the run does not end: {reached}")

    moments, straight, killed = random.Random(7), tmp_path / "straight", tmp_path / "killed"
    assert to_the_end(straight, [], 0) == []
    steps = [row["seconds"] for row in read_metrics(straight) if "seconds" in row]
    saving = (list_checkpoints(straight)[-1] / "state.json").stat().st_mtime - (straight / "run.json").stat().st_mtime
    reached = to_the_end(killed, moments.sample(range(STRETCHES), 20), max(sum(steps), saving) / STRETCHES)
    assert len(reached) == 20 and len(set(reached)) > 15, reached

    for name in ("model.safetensors", "optimizer.safetensors"):
        expected, got = (list_checkpoints(run)[-1] / name for run in (straight, killed))
        assert got.read_bytes() == expected.read_bytes(), name
    rows = [[(row["step"], row.get("loss"), row.get("validation_loss")) for row in read_metrics(run)] for run in (straight, killed)]
    assert rows[0] == rows[1]
