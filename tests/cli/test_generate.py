"""`fastmixer generate`: the same seed writes the same text, on stdout as it comes."""

import re
import shutil

import pytest


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
    else:
        assert result.stderr.startswith(f"Error: {path}"), result.stderr
