"""`fastmixer train`: text in, a run folder out, resumed on request; bad input is refused before anything is written."""

import json
import re
import shutil

import pytest

import fastmixer as fm
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
    assert {path.name for path in folder.iterdir()} == {"run.json", "metrics.jsonl", "data", "checkpoints"}
    assert isinstance(fm.Transformer.load(folder), fm.Transformer)


def test_resume_of_a_finished_run_changes_nothing(run, trained):
    folder, _ = trained
    before, rows = fm.Transformer.load(folder).parameters.data.copy(), read_metrics(folder)
    result = run("train", "--out", folder, "--resume", "--no-progress")
    assert result.exit_code == 0 and "finished at step 12" in result.output
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


def test_jsonl_and_a_tokenizer_of_ones_own(run, tmp_path, trained, train_options):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"body": f"story {i}: the cat sat on the mat."}) + "\n" for i in range(60)))
    tokenizer = next(trained[0].glob("checkpoints/*/tokenizer.json"))
    options = [*train_options, "--field", "body", "--tokenizer", tokenizer, "--steps", "2"]
    result = run("train", path, "--out", tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    assert fm.load(tmp_path / "run").tokenizer.to_json() == fm.Tokenizer.load(tokenizer).to_json()
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
        (_file("a.jsonl", b'{"text": "a"}\n{broken\n'), [], "a.jsonl"),
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
        ("metrics.jsonl", '{"step": 0}\nnonsense\n', "metrics.jsonl, line 2 is not JSON: "),
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
