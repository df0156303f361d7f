"""The README's Python runs as it stands there, and its commands exist with the options it names."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastmixer.cli.main import main
from fastmixer.text.assets import alice_text

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)


def test_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(alice_text()[:20_000], encoding="utf-8")
    options = "--context 32 --steps 3 --batch 2 --vocab-size 400 --no-progress".split()
    assert CliRunner().invoke(main, ["train", "book.txt", "--out", "runs/book", *options]).exit_code == 0
    names = {}
    blocks = [code for language, code in BLOCKS if language == "python" and GGUF not in code]
    assert len(blocks) == 2
    for code in blocks:
        code = code.replace("max_new_tokens=64", "max_new_tokens=4").replace('"river", k=5', '" the", k=5')
        exec(compile(code, "README.md", "exec"), names)
    assert names["d_rows"].rows.tolist() == [1, 3, 4, 5, 9] and names["rows"].shape == (2, 3, 64)
    assert names["logits"].shape == (4, 8, names["model"].config.vocab) or names["logits"].ndim == 3
    assert capsys.readouterr().out


def commands():
    lines = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.startswith("fastmixer ")]


@pytest.mark.parametrize("command", commands())
def test_commands_and_their_options_exist(command):
    name, *rest = command.split()[1:]
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    for option in re.findall(r"--[a-z-]+", " ".join(rest)):
        assert option in result.output, option


@pytest.fixture
def folder_with_a_model(tmp_path, monkeypatch, smollm2_path):
    monkeypatch.chdir(tmp_path)
    Path(GGUF).symlink_to(smollm2_path)
    Path("book.txt").write_text(alice_text()[:3000], encoding="utf-8")


def test_python_over_a_model_file_runs(folder_with_a_model, capsys):
    (code,) = [code for language, code in BLOCKS if language == "python" and GGUF in code]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith(" Paris")


def test_commands_over_a_model_file_run(folder_with_a_model):
    found = [command for command in commands() if GGUF in command]
    assert len(found) == 5
    for command in found:
        result = CliRunner().invoke(main, shlex.split(command)[1:], input="What is a kernel?\n")
        assert result.exit_code == 0 and result.stdout, result.output
        if "generate" in command:
            assert result.stdout.startswith("The capital of France is Paris")
