"""`fastmixer train`: text in, a run folder out, resumed on request; bad input is refused before anything is written."""

import json
import re
import shutil
import sys

import pytest

import fastmixer as fm
from fastmixer.data import open_dataset
from fastmixer.kernels import select, threads
from fastmixer.train.metrics import read_metrics


def test_it_says_what_it_does(trained):
    folder, output = trained
    lines = output.splitlines()
    assert re.fullmatch(
        r"[\d,]+ parameters, vocabulary \d+, [\d,]+ tokens to train on, [\d,]+ to validate on", lines[0]
    )
    assert [
        re.match(r"step +(\d+)   validation loss \d\.\d{4}   perplexity \d+\.\d$", line)[1] for line in lines[1:4]
    ] == ["0", "6", "12"]
    assert re.fullmatch(r"finished at step 12: validation loss \d\.\d{4} nats a token, perplexity \d+\.\d", lines[4])
    assert re.fullmatch(r"[\d,]+ tokens/s in the last step, peak memory [\d,]+ MB", lines[5])
    assert lines[7].startswith("where a step goes")
    assert lines[-3].startswith("whole step") and len(lines) <= 22 and max(map(len, lines[7:-1])) <= 90
    assert lines[-1] == f'saved in {folder}; try: fastmixer generate {folder} "Once"'
    assert {path.name for path in folder.iterdir()} == {"run.json", "metrics.jsonl", "data", "checkpoints", ".lock"}
    assert isinstance(fm.Transformer.load(folder), fm.Transformer)


def test_resume_of_a_finished_run_changes_nothing(run, trained):
    folder, _ = trained
    before, rows = fm.Transformer.load(folder).parameters.data.copy(), read_metrics(folder)
    result = run("train", "--out", folder, "--resume", "--no-progress")
    assert result.exit_code == 0 and re.fullmatch(r"finished at step 12: validation loss .*", result.output.splitlines()[-2])
    assert result.output.splitlines()[-1] == "nothing was left to do: all its steps were done; --steps N with N over 12 trains on"
    result = run("train", "--out", folder, "--resume", "--no-progress", "--steps", 3)
    assert result.exit_code == 1 and "Error: Trainer: steps must be at least 12, which this run has reached; got 3" in result.output
    assert (fm.Transformer.load(folder).parameters.data == before).all() and read_metrics(folder)[: len(rows)] == rows


def test_resume_goes_on_as_if_never_stopped(run, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000012")
    assert [path.name for path in folder.glob("checkpoints/*")] == ["step-00000008"]
    result = run("train", "--out", folder, "--resume", "--no-progress")
    assert result.exit_code == 0 and result.stdout.splitlines()[1:3] == trained[1].splitlines()[3:5], result.output
    assert (fm.Transformer.load(folder).parameters.data == fm.Transformer.load(trained[0]).parameters.data).all()
    steps = [row["step"] for row in read_metrics(folder) if "loss" in row]
    assert steps == sorted(set(steps)) and steps[-1] == 12


def test_a_small_text_gives_fewer_pieces_and_one_line_says_so(run, tmp_path, text_file, train_options):
    result = run("train", text_file, "--out", tmp_path / "run", *train_options, "--tokenizer", "bpe", "--steps", 1)
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(r"Warning: train_tokenizer: the text yields \d+ pieces, not the 4096 asked for", line)


def test_resume_takes_more_steps_but_no_other_run(run, tmp_path, text_file, train_options):
    folder = tmp_path / "run"
    assert run("train", text_file, "--out", folder, *train_options).exit_code == 0
    result = run("train", text_file, "--out", folder, "--resume", "--no-progress", "--steps", 15)
    assert result.exit_code == 0 and f"TEXT is not read again: {folder} has its tokens" in result.output
    assert "finished at step 15" in result.output and json.loads((folder / "run.json").read_text())["settings"]["steps"] == 15
    result = run("train", "--out", folder, "--resume", "--preset", "gpt2")
    assert result.exit_code == 2
    assert "Error: --preset cannot change when a run goes on: leave it out beside --resume" in result.output


def test_a_batch_too_large_is_refused_before_work_begins(run, tmp_path, text_file):
    result = run("train", text_file, "--out", tmp_path / "run", "--batch", 10**9)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("Error: training on batches of 1000000000 x ") and "What fits: batch " in result.stderr
    assert not (tmp_path / "run").exists()


def test_activations_may_be_checkpointed_from_a_resume_on(run, tmp_path, trained):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000012")
    for option, kept in [("--checkpoint-activations", True), ("--keep-activations", False)]:
        result = run("train", "--out", folder, "--resume", "--no-progress", option)
        assert result.exit_code == 0, result.output
        assert json.loads((folder / "run.json").read_text())["model"]["checkpoint_activations"] is kept
        assert (fm.Transformer.load(folder).parameters.data == fm.Transformer.load(trained[0]).parameters.data).all()


def test_a_run_is_not_overwritten(run, trained, text_file, train_options):
    result = run("train", text_file, "--out", trained[0], *train_options)
    assert result.exit_code == 2
    assert f"Error: {trained[0]} already holds a run: add --resume to go on, or choose another --out" in result.output


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.ndjson"])
def test_json_lines_and_a_tokenizer_of_ones_own(run, tmp_path, trained, train_options, name):
    path = tmp_path / name
    path.write_text("".join(json.dumps({"body": f"story {i}: the cat sat on the mat."}) + "\n" for i in range(60)))
    tokenizer = next(trained[0].glob("checkpoints/*/tokenizer.json"))
    options = [*train_options, "--field", "body", "--tokenizer", tokenizer, "--steps", "2"]
    result = run("train", path, "--out", tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    assert fm.load(tmp_path / "run").tokenizer.to_json() == fm.Tokenizer.load(tokenizer).to_json()
    text = fm.Tokenizer.load(tokenizer).decode(open_dataset(tmp_path / "run" / "data").train.tokens)
    assert re.fullmatch(r"(story [^:{]+: the cat sat on the mat\.)+", text)
    result = run("train", path, "--out", tmp_path / "other", *train_options)
    assert result.exit_code == 1 and f"{path}" in result.output and "'text'" in result.output


def _file(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


LONG = b"the cat sat on the mat. " * 50


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (lambda folder: folder / "absent.txt", [], "absent.txt is not a file"),
        (_file("a.txt", b""), [], "a.txt"),
        (_file("a.txt", b"text\0more"), [], "a.txt is binary, not text: byte 4 is 0x00"),
        (_file("a.txt", b"caf\xe9 noir"), [], "a.txt is not UTF-8 text: byte 3 is 0xe9"),
        (_file("a.txt", b"Alice"), [], "a context of 16 needs at least 17. Give more text or a shorter context"),
        (_file("a.txt", LONG), ["--preset", "gpt5"], "ModelConfig: preset must be one of gpt2, "),
        (_file("a.txt", LONG), ["--time", "17"], "Trainer: time 17 is longer than the model's context of 16"),
        (_file("a.txt", LONG), ["--steps", "0"], "TrainSettings: steps must be >= 1; got 0"),
        (_file("a.txt", LONG), ["--dropout", "1"], "ModelConfig: dropout must be >= 0 and < 1; got 1.0"),
        (_file("a.txt", LONG), ["--schedule", "step"], "TrainSettings: schedule must be one of 'cosine', 'linear', 'constant'; got 'step'"),
        (_file("a.txt", LONG), ["--tokenizer", "nowhere"], "nowhere"),
        (_file("a.jsonl", b'{"text": "a"}\n{broken\n'), [], "a.jsonl, line 2: not JSON"),
        (_file("a.jsonl", b'{"text": "a"}\n{"text": "b", "n": ' + b"9" * 5000 + b"}"), [], "a.jsonl, line 2: not JSON: Exceeds the limit"),
        (_file("a.ndjson", b'{"text": "a"}\n' + b"[" * 100_000), [], "a.ndjson, line 2: not JSON: "),
        (_file("a.jsonl", b'{"text": "a\\ud800"}'), [], "a.jsonl, line 1: 'text' holds half a surrogate pair"),
    ],
)  # fmt: skip
def test_bad_input(run, tmp_path, train_options, make, options, text):
    result = run("train", make(tmp_path), "--out", tmp_path / "run", *train_options, *options)
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert text in line
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_damaged_checkpoint_is_refused(run, tmp_path, text_file, train_options):
    folder = tmp_path / "run"
    assert run("train", text_file, "--out", folder, *train_options).exit_code == 0
    path = max(folder.glob("checkpoints/*/optimizer.safetensors"))
    path.write_bytes(path.read_bytes()[:-8])
    result = run("train", "--out", folder, "--resume", "--no-progress")
    assert result.exit_code == 1 and f"Error: {path} must have " in result.output


def test_a_damaged_shard_is_refused(run, tmp_path, text_file, train_options):
    folder = tmp_path / "run"
    assert run("train", text_file, "--out", folder, *train_options).exit_code == 0
    path = folder / "data" / "train.tokens"
    path.write_bytes(path.read_bytes()[:-8])
    result = run("train", "--out", folder, "--resume", "--no-progress")
    assert result.exit_code == 1 and f"{path}" in result.output


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("run.json", None, "run.json does not exist"),
        ("run.json", "{", "run.json is not JSON: "),
        ("run.json", "{}", "run.json: field 'data' must be a str; got None"),
        ("run.json", '{"data": "data", "settings": 3}', "run.json: field 'settings' must be a dict; got 3"),
        ("run.json", '{"data": "data", "settings": {"pace": 1}, "model": {}}', "run.json: settings has an unknown field 'pace'"),
    ],
)
def test_a_damaged_run_is_one_line_that_names_the_file(run, trained, tmp_path, name, content, text):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    result = run("train", "--out", folder, "--resume", "--no-progress")
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {folder}/{text}"), result.output
    assert result.stderr.count("\n") == 1


def test_a_broken_log_is_one_line_and_the_run_goes_on(run, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    (folder / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n')
    result = run("train", "--out", folder, "--resume", "--no-progress", "--steps", 13)
    assert result.exit_code == 0 and result.stderr.startswith(f"Warning: {folder}/metrics.jsonl, line 2 is not JSON: ")
    assert result.stderr.count("\n") == 1 and [row["step"] for row in read_metrics(folder)] == [0, 13, 13]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--precision", "int8"], "Transformer: precision must be one of 'float32', 'bfloat16'; got 'int8'"),
        (["--sparse-embedding"], "Transformer: sparse_embedding needs an untied head: a tied one moves every row"),
        (["--time", "33", "--context", "32"], "Trainer: time 33 is longer than the model's context of 32"),
        (["--validation", "1"], "train: validation must be >= 0 and < 1; got 1.0"),
        (["--validation", "nan"], "train: validation must be >= 0 and < 1; got nan"),
        (["--patience", "3", "--validation", "0"], "train: patience 3 counts validation losses and needs validation > 0; got 0"),
        (["--patience", "3", "--evaluate-every", "0"], "Trainer: patience 3 counts evaluations and needs evaluate_every >= 1; got 0"),
        (["--learning-rate", "5e-5", "--min-learning-rate", "1e-4"], "Trainer: min_learning_rate must be at most "),
        (["--clip-norm", "inf"], "TrainSettings: clip_norm must be a finite number > 0, or None for no clipping; got inf"),
        (["--tensorboard"], 'tensorboard=True needs tensorboardX: pip install "fastmixer[tensorboard]"'),
        ({"FASTMIXER_ISA": "foo"}, "FASTMIXER_ISA must be one of "),
        ({"FASTMIXER_KERNELS": "foo"}, "FASTMIXER_KERNELS must be one of "),
        ({"FASTMIXER_THREADS": "abc"}, "FASTMIXER_THREADS must be an integer >= 1; got 'abc'"),
    ],
)
def test_options_are_judged_before_work_begins(run, tmp_path, text_file, monkeypatch, options, text):
    def work(*arguments):
        raise AssertionError

    monkeypatch.setattr("fastmixer.text.train_tokenizer", work)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    if isinstance(options, dict):
        monkeypatch.setattr(select, "_chosen", {})
        monkeypatch.setattr(threads, "_threads", None)
        for name, value in options.items():
            monkeypatch.setenv(name, value)
        options = []
    result = run("train", text_file, "--out", tmp_path / "run", "--tokenizer", "characters", *options)
    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {text}") and result.stderr.count("\n") == 1, result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("typed", "norm"), [("0", None), ("none", None), ("0.5", 0.5)])
def test_clipping_can_be_switched_off(run, tmp_path, text_file, train_options, typed, norm):
    result = run("train", text_file, "--out", tmp_path, *train_options, "--steps", 1, "--clip-norm", typed)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["clip_norm"] == norm
    result = run("train", text_file, "--out", tmp_path, "--clip-norm", "much")
    assert result.exit_code == 2 and "'--clip-norm': must be a number, or 0 or none for no limit; got 'much'" in result.output


def test_a_precision_may_be_forced_from_a_resume_on(run, trained, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    monkeypatch.setattr("fastmixer.model.precision.is_fast", lambda: False)
    saved = json.loads((folder / "run.json").read_text())
    saved["model"]["precision"] = "bfloat16"
    (folder / "run.json").write_text(json.dumps(saved))
    result = run("train", "--out", folder, "--resume", "--no-progress")
    assert result.exit_code == 0 and "Warning: precision 'bfloat16' has no instructions here" in result.stderr
    result = run("train", "--out", folder, "--resume", "--no-progress", "--force-precision")
    assert result.exit_code == 0 and result.stderr == ""
    assert json.loads((folder / "run.json").read_text())["model"]["precision"] == "bfloat16"
