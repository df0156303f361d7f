"""`fastmixer generate`: the same seed writes the same text, on stdout as it comes."""

import re
import shutil

import pytest
from tiny_encoders import TINY, write_tokenizer

from fastmixer.cli.options import quoted


def test_seeds_and_stats(run, trained):
    folder, _ = trained

    def write(*options):
        result = run("generate", folder, "Alice was", "-n", 20, *options)
        assert result.exit_code == 0, result.output
        return result

    first = write("--seed", 1, "--stats")
    assert (
        first.stdout.startswith("Alice was") and first.stdout == write("--seed", 1).stdout != write("--seed", 2).stdout
    )
    assert re.fullmatch(r"\d+ tokens, end: (length|eos); read [\d,]+, wrote [\d,]+ tokens/s\n", first.stderr)
    assert write("--temperature", 0).stdout == write("--temperature", 0, "--seed", 9).stdout


def test_bad_options(run, trained):
    folder, _ = trained
    for options, text in (
        (["--top-p", 0], "Error: generate: top_p must be > 0 and <= 1; got 0.0"),
        (["-n", 0], "Error: generate: max_new_tokens must be >= 1; got 0"),
        (["--samples", 0], "Error: generate: n must be >= 1; got 0"),
        (["--logit-bias", "99999=1"], "Error: generate: logit_bias names token 99999, but ids are 0..65"),
        (["--logit-bias", "Alice=1"], "Error: generate: logit_bias names 'Alice', which is 5 tokens; it must be one"),
        (["--stop-token", 66], "Error: generate: stop names token 66, but ids are 0..65"),
        (
            ["--weights", "int3"],
            "Error: load: weights must be one of 'auto', 'float32', 'bfloat16', 'int8', 'int4'; got 'int3'",
        ),
        (["--cache", "int4"], "Error: load: cache must be one of 'float32', 'bfloat16', 'int8'; got 'int4'"),
    ):
        result = run("generate", folder, "Alice", *options)
        assert (result.exit_code, result.output) == (1, text + "\n")
    result = run("generate", folder, "A" * 40)
    assert result.output == "Error: generate: prompt 0 has 40 tokens, more than the model's context of 16\n"


def test_the_sentence_ends_where_stop_says_and_may_begin_with_nothing(run, trained):
    folder, _ = trained
    whole = run("generate", folder, "--seed", 4, "-n", 30).stdout.removesuffix("\n")
    stop = whole[10]
    assert run("generate", folder, "--seed", 4, "-n", 30, "--stop", stop).stdout == whole[: whole.index(stop)] + "\n"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "absent"])
def test_a_damaged_model_is_one_line_that_names_the_file(run, trained, tmp_path, name, damage):
    folder = tmp_path / "model"
    shutil.copytree(max(trained[0].glob("checkpoints/step-*")), folder)
    path = folder / name
    data = {"cut": path.read_bytes()[:150], "empty": b"", "zeros": bytes(300), "absent": None}[damage]
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    result = run("generate", folder, "Alice", "-n", 2)
    assert result.exit_code == 1 and result.stdout == "" and result.stderr.count("\n") == 1, result.output
    if (name, damage) == ("tokenizer.json", "absent"):  # a model may be without one; text needs one
        assert "tokenizer" in result.stderr
    elif (name, damage) == ("model.safetensors", "absent"):  # it could have been many files
        assert result.stderr == f"Error: {folder} holds neither model.safetensors nor model.safetensors.index.json\n"
    else:
        assert result.stderr.startswith(f"Error: {path}"), result.stderr


def test_a_bias_must_be_a_number(run):
    result = run("generate", "nowhere", "Alice", "--logit-bias", "e")
    assert result.exit_code == 2
    assert "'--logit-bias': must be TOKEN=NUMBER, TOKEN an id or a piece of text; got 'e'" in result.stderr


def test_what_is_no_model_is_one_line(run, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("hello")
    for model, error in (
        (
            tmp_path / "absent",
            f"{tmp_path}/absent does not exist (expected a .gguf file, a model's folder, or org/name)",
        ),
        (text, f"{text} must be a .gguf file or a model's folder; it begins with b'hell'"),
    ):
        for command in (["generate", model, "x"], ["chat", model], ["info", model], ["convert", model, tmp_path / "new"],
                        ["perplexity", model, text]):  # fmt: skip
            result = run(*command)
            assert (result.exit_code, result.output) == (1, f"Error: {error}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_too_little_memory_is_told_before_work_begins(run, trained, monkeypatch):
    monkeypatch.setattr("fastmixer.generate.memory.available_memory", lambda: 1_000_000)
    result = run("generate", trained[0], "Alice", "--weights", "float32")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "Error: load: 'step-00000012' with a context of 16 and a cache in bfloat16 takes 0.00 GB, but"
    )
    assert result.stderr.endswith("a smaller context, weights of fewer bits or cache='int8' take less\n")


def test_the_prompt_may_come_from_a_file_or_from_stdin(run, trained, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Alice")
    options = ["-n", 5, "--temperature", 0]
    expected = run("generate", trained[0], "Alice", *options).stdout
    assert expected.startswith("Alice") and len(expected) > 6
    assert run("generate", trained[0], "--prompt-file", path, *options).stdout == expected
    assert run("generate", trained[0], "-", *options, stdin="Alice").stdout == expected
    result = run("generate", trained[0], "-", stdin=b"Al\xff")
    assert result.output == "Error: stdin is not UTF-8: byte 2 is 0xff\n"
    result = run("generate", trained[0], "Bob", "--prompt-file", path)
    assert result.exit_code == 2 and "give PROMPT or --prompt-file, not both" in result.stderr
    result = run("generate", trained[0], "")
    assert result.output == "Error: generate: the prompt is empty; without one the model begins a text of its own\n"
    result = run("generate", "")
    assert result.output == "Error: load: path_or_name must name a .gguf file, a model's folder, or org/name; got ''\n"


def test_options_reach_the_model(run, trained):
    plain = ["generate", trained[0], "Alice", "-n", 6, "--temperature", 0]
    first = run(*plain).stdout
    token = first[5]
    assert not run(*plain, "--logit-bias", f"{token}=-inf").stdout.startswith("Alice" + token)
    assert run(*plain, "--logit-bias", "q=100").stdout == "Alice" + "q" * 6 + "\n"
    assert run(*plain, "--speculative", 3).stdout == first
    assert run(*plain, "--context", 8).stdout == first[:9] + "\n"  # 8 tokens, and the one that they foretell


def test_many_samples_and_their_log_probabilities(run, trained):
    result = run("generate", trained[0], "Alice", "-n", 3, "--samples", 2, "--seed", 1, "--logprobs", 2, "--stats")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and "--- 1 ---" in lines and "--- 2 ---" in lines
    rows = [line for line in lines if re.match(r" +-\d+\.\d{3}  '", line)]
    assert 2 <= len(rows) <= 6 and all(len(re.findall(r"-?\d\.\d{3}", row)) == 3 for row in rows)
    second = lines.index("--- 2 ---")
    assert any(row in lines[:second] for row in rows) and lines[-1] in rows  # each text has its own below it
    assert result.stderr.count("tokens/s") == 2


def test_pieces_are_escaped_once():
    assert quoted(r"\xe6") == r"'\xe6'" and quoted("\n\x1b[2J é") == r"'\n\x1b[2J é'"


def test_an_encoder_writes_no_text(run, tmp_path):
    folder = tmp_path / "bert"
    shutil.copytree(TINY / "bert", folder)
    write_tokenizer(folder)
    for command in (["generate", folder, "hello"], ["chat", folder]):
        result = run(*command)
        assert result.exit_code == 1
        assert result.output.startswith(f"Error: {folder} makes vectors, and writes no text; `fastmixer embed` takes texts")
