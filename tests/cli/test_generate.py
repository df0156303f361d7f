"""`fastmixer generate`: the same seed writes the same text, on stdout as it comes."""

import re


def test_seeds_and_stats(run, trained):
    folder, _ = trained

    def write(*options):
        result = run("generate", folder, "Alice was", "-n", 20, *options)
        assert result.exit_code == 0, result.output
        return result

    first = write("--seed", 1, "--stats")
    assert first.stdout.startswith("Alice was") and first.stdout == write("--seed", 1).stdout != write("--seed", 2).stdout
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
