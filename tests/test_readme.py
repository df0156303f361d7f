"""The README's Python runs as it stands there, and its commands exist with the options it names."""

import asyncio
import re
import shlex
from pathlib import Path

import pytest
from cached_models import MINILM, NotAvailable, cached_folder
from click.testing import CliRunner

from fastmixer.cli.main import main
from fastmixer.text.assets import alice_text

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM_NAME = "all-MiniLM-L6-v2"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)


def test_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(alice_text()[:20_000], encoding="utf-8")
    options = "--context 32 --steps 3 --batch 2 --vocab-size 400 --no-progress".split()
    assert CliRunner().invoke(main, ["train", "book.txt", "--out", "runs/book", *options]).exit_code == 0
    names = {}
    blocks = [
        code for language, code in BLOCKS if language == "python" and GGUF not in code and MINILM_NAME not in code
    ]
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


@pytest.fixture
def folder_with_an_encoder(tmp_path, monkeypatch):
    try:
        folder = cached_folder(MINILM)
    except NotAvailable as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    Path(MINILM_NAME).symlink_to(folder)
    Path("sentences.txt").write_text("The bank by the river\nThe White Rabbit took a watch out of its pocket.\nAlice\n")


def test_python_over_an_encoder_runs(folder_with_an_encoder):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    (code,) = [code for language, code in BLOCKS if language == "python" and MINILM_NAME in code]
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["vectors"].shape == (2, 384) and names["ids"].tolist() == [[1]]
    assert names["classifier"].predict(["an ocean", "a prince"]).tolist() == ["water", "people"]
    # as LangChain calls it: lists of floats, the same from coroutines
    embeddings, texts = names["Embeddings"](), ["The bank by the river", "Alice"]
    documents, query = embeddings.embed_documents(texts), embeddings.embed_query("Alice")
    assert [len(vector) for vector in documents] == [384, 384] and type(documents[0][0]) is float is type(query[0])
    assert query == pytest.approx(documents[1], abs=1e-3) and embeddings.embed_documents([]) == []
    assert asyncio.run(embeddings.aembed_documents(texts)) == documents
    assert asyncio.run(embeddings.aembed_query("Alice")) == query


def test_commands_over_an_encoder_run(folder_with_an_encoder):
    embed, search = (command for command in commands() if command.startswith(("fastmixer embed", "fastmixer search")))
    result = CliRunner().invoke(main, shlex.split(embed)[1:])
    assert result.exit_code == 0 and result.stdout.startswith("3 texts, 384 float32 numbers each"), result.output
    result = CliRunner().invoke(main, shlex.split(search)[1:])
    assert result.exit_code == 0 and result.stdout.splitlines()[0].endswith(
        "2  The White Rabbit took a watch out of its pocket."
    )
