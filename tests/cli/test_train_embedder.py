"""`fastmixer train-embedder`: what it says, what it writes, and bad input as one line with nothing written."""

import errno
import importlib
import json
import os
import re

import pytest
from pair_models import made_pairs, write_random_encoder

import fastmixer as fm
from fastmixer.train import EmbedderTrainer
from fastmixer.train.embedder import EmbedderResult

OPTIONS = ["--steps", 4, "--batch", 8, "--learning-rate", "3e-3", "--no-progress"]


def write_pairs(path, pairs, names=("anchor", "positive")):
    path.write_text("".join(json.dumps(dict(zip(names, pair, strict=True))) + "\n" for pair in pairs))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_random_encoder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", made_pairs(40))


def test_it_says_what_it_does(run, model, pairs_file, tmp_path):
    out = tmp_path / "tuned"
    result = run("train-embedder", pairs_file, "--model", model, "--out", out, *OPTIONS)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "20,256 parameters, 36 pairs to train on, 4 to evaluate on; 4 steps of 8 pairs"
    score = r"top-1 accuracy \d+\.\d%, MRR@10 \d\.\d{3} \(4 among 4 texts\)"
    assert re.fullmatch(f"before: {score}", lines[1]) and re.fullmatch(f"after:  {score}", lines[2])
    assert re.fullmatch(r"finished at step 4: loss \d\.\d{3}, [\d,]+ pairs/s", lines[3])
    assert re.fullmatch(r"top-1 accuracy \d+\.\d% -> \d+\.\d%", lines[4])
    assert lines[5:] == [f"saved in {out}"] and result.stderr == ""
    assert fm.load(out).embed("alice").shape == (32,)


def test_options_reach_the_trainer(run, model, tmp_path, monkeypatch):
    pairs = write_pairs(tmp_path / "a.jsonl", made_pairs(20), ("q", "a"))
    other = write_pairs(tmp_path / "b.jsonl", made_pairs(9, seed=1), ("q", "a"))
    seen = []
    fit = EmbedderTrainer.fit
    monkeypatch.setattr(EmbedderTrainer, "fit", lambda self: seen.append(self) or fit(self))
    result = run(
        "train-embedder", pairs, "--model", model, "--out", tmp_path / "tuned", "--fields", "q, a", "--eval", other,
        "--epochs", 2, "--batch", 7, "--warmup", 1, "--seed", 3, "--symmetric", "--max-length", 12, "--anchor-prompt",
        "query : ", "--freeze-embeddings", "--threads", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (trainer,) = seen
    settings = trainer.settings
    assert (len(trainer.pairs), len(trainer.held_out), trainer.steps) == (20, 9, 6)
    assert (settings.warmup, settings.seed, settings.symmetric, settings.max_length) == (1, 3, True, 12)
    assert settings.anchor_prompt == "query : " and settings.freeze_embeddings and settings.text_prompt is None
    assert fm.get_threads() == 1
    assert "fine-tuning: 100%" in result.stderr and "before: top-1" in result.stdout


def test_an_interrupted_run_says_what_it_left(run, model, pairs_file, tmp_path, monkeypatch):
    one_step = EmbedderTrainer._one_step

    def step(self, index, chosen):
        self._interrupted = index == 1
        return one_step(self, index, chosen)

    monkeypatch.setattr(EmbedderTrainer, "_one_step", step)
    out = tmp_path / "tuned"
    result = run("train-embedder", pairs_file, "--model", model, "--out", out, *OPTIONS)
    assert result.exit_code == 130
    lines = result.stdout.splitlines()
    assert lines[-2].startswith("interrupted at step 2: loss ") and lines[-1] == f"saved in {out}"
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("reason", ["interrupted", "finished"])
def test_a_terminal_that_is_gone_changes_no_status(run, model, pairs_file, tmp_path, monkeypatch, reason):
    def gone(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    result = EmbedderResult(tmp_path, reason, 1, [1.0], signal=1, saved=True)
    monkeypatch.setattr(EmbedderTrainer, "fit", lambda self: result)
    monkeypatch.setattr(importlib.import_module("fastmixer.cli.train_embedder"), "_tell", gone)
    found = run("train-embedder", pairs_file, "--model", model, "--out", tmp_path / "tuned", *OPTIONS)
    assert (found.exit_code, "Input/output error" in found.output) == ((129, False) if reason == "interrupted" else (1, True))


@pytest.mark.parametrize(
    ("content", "options", "text"),
    [
        ("", [], "pairs.jsonl holds no pairs; expected a JSON object a line with 'anchor' and 'positive'"),
        (None, [], "pairs.jsonl is not a file"),
        ('{"anchor": "a", "positive": "b"}\n{broken\n', [], "pairs.jsonl, line 2: not JSON: Expecting property name"),
        ('{"anchor": "a"}\n', [], "pairs.jsonl, line 1: no field 'positive' (or 'text'); got 'anchor'"),
        ('{"anchor": "a", "positive": 3}\n', [], "pairs.jsonl, line 1: 'positive' must be a string; got int"),
        ('{"anchor": "a", "positive": "b"}\n', [], "EmbedderTrainer: pairs must hold at least 2 to train on"),
        ('{"anchor": "a", "positive": "b"}\n' * 4, ["--batch", "1"], "EmbedderTrainer: batch must be >= 2; got 1"),
        ('{"anchor": "a", "positive": "b"}\n' * 4, ["--fields", "q"], "fields must be two or three names"),
        ('{"anchor": "a", "positive": "b"}\n' * 4, ["--eval", "absent.jsonl"], "absent.jsonl is not a file"),
        ('{"anchor": "a", "positive": "b"}\n{"anchor": "c", "positive": "d"}\n', ["--warmup", "9"], "EmbedderTrainer: warmup must be at most 4, all steps"),
        ('{"anchor": "a", "positive": "b"}\n{"anchor": "c", "positive": "d"}\n', ["--model", "absent"], "absent does not exist (expected an encoder's folder, or org/name)"),
    ],
)  # fmt: skip
def test_bad_input(run, model, tmp_path, content, options, text):
    path, out = tmp_path / "pairs.jsonl", tmp_path / "tuned"
    if content is not None:
        path.write_text(content)
    chosen = [] if "--model" in options else ["--model", model]
    result = run("train-embedder", path, "--out", out, "--offline", *chosen, *OPTIONS, *options)
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and text in line
    assert not out.exists()
