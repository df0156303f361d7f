"""`fastmixer embed` and `fastmixer search`: what Python gives for the same texts, and what is wrong in one line."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_encoders import make_sentence_folder

from fastmixer.embed import load_sentence_model, sentence_model
from fastmixer.generate.language_model import LanguageModel
from fastmixer.text.text_file import TextFile
from fastmixer.weights.encoder_recipe import POOLINGS

embed_command = importlib.import_module("fastmixer.cli.embed")

TEXTS = ["The bank by the river", "", "Alice introduced Bob to Chloe.", "water came up to the door", "the bank"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny encoder with a prompt for queries."""
    prompts = {"query": "query : ", "passage": "passage : "}
    return make_sentence_folder(tmp_path_factory.mktemp("models") / "tiny", prompts)


@pytest.fixture(scope="module")
def model(folder):
    return load_sentence_model(folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with texts.txt and texts.jsonl, to work in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    (tmp_path / "texts.jsonl").write_text("\n\n".join(json.dumps({"body": text, "id": 1}) for text in TEXTS))
    return tmp_path


def as_documents(model, **options):
    """What `fastmixer embed` gives unless told otherwise: the model has a prompt for passages."""
    return model.embed(TEXTS, **({"prompt_name": "passage"} | options))


def embedded(run, folder, *arguments, stdin=None):
    result = run("embed", folder, *arguments, "-o", "v.npy", stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.output, np.load("v.npy")


def test_texts_become_vectors(run, folder, model, here):
    output, vectors = embedded(run, folder, "texts.txt")
    assert re.fullmatch(r"5 texts, 32 float32 numbers each, in [\d.]+ s \([\d,]+ texts/s\): v.npy\n", output)
    np.testing.assert_array_equal(vectors, as_documents(model))


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--no-normalize"], {"normalize": False}),
        (["--dtype", "float16"], {"dtype": "float16"}),
        (["--prompt", "the old "], {"prompt": "the old ", "prompt_name": None}),
        (["--prompt", ""], {"prompt_name": None}),
        (["--prompt-name", "query"], {"prompt_name": "query"}),
        (["--batch-tokens", 8, "--no-progress"], {"batch_tokens": 8}),
    ],
)
def test_options(run, folder, model, here, arguments, options):
    _, vectors = embedded(run, folder, "texts.txt", *arguments)
    expected = as_documents(model, **options)
    assert vectors.dtype == expected.dtype
    np.testing.assert_array_equal(vectors, expected)


def test_weights(run, folder, here):
    _, vectors = embedded(run, folder, "texts.txt", "--weights", "int8", "--threads", 1)
    np.testing.assert_array_equal(vectors, as_documents(load_sentence_model(folder, "int8")))


def test_json_lines_and_stdin(run, folder, model, here):
    expected = as_documents(model)
    np.testing.assert_array_equal(embedded(run, folder, "texts.jsonl", "--field", "body")[1], expected)
    np.testing.assert_array_equal(embedded(run, folder, "-", stdin="\n".join(TEXTS))[1], expected)
    data = (here / "texts.jsonl").read_text()
    np.testing.assert_array_equal(embedded(run, folder, "-", "--field", "body", stdin=data)[1], expected)


def test_no_texts_are_no_vectors(run, folder, here):
    output, vectors = embedded(run, folder, "-", stdin="")
    assert output.startswith("0 texts, 32 float32 numbers each, ") and vectors.shape == (0, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.txt", "-o", "v.npy"], "none.txt is not a file"),
        (["texts.txt", "-o", "v.bin"], "embed_to: path must end with .npy; got 'v.bin'"),
        (["texts.txt", "-o", "no/v.npy"], "embed_to: there is no folder no to write v.npy into"),
        (["texts.jsonl", "-o", "v.npy"], "texts.jsonl, line 1: has no field 'text'; it has 'body', 'id'"),
        (["texts.txt", "-o", "v.npy", "--dtype", "int8"], "embed_to: dtype must be one of 'float32', 'float16'; got 'int8'"),
        (["texts.txt", "-o", "v.npy", "--batch-tokens", "0"], "embed_to: batch_tokens must be >= 1; got 0"),
        (["texts.txt", "-o", "v.npy", "--prompt-name", "x"], "embed_to: prompt_name must be one of 'query', 'passage'; got 'x'"),
        (["long.txt", "-o", "v.npy", "--no-truncate"], "embed_to: long.txt, line 2 has 204 tokens; at most 64 are possible (truncate=True cuts it)"),
        (["half.jsonl", "-o", "v.npy"], "embed_to: character 1 of half.jsonl, line 5 is '\\ud800', half a surrogate pair; no text holds that alone"),
        (["binary.txt", "-o", "v.npy"], "binary.txt, line 2: not UTF-8: byte 1 is 0xff"),
    ],
)  # fmt: skip
def test_what_embed_refuses(run, folder, here, arguments, message):
    (here / "long.txt").write_text("a\n" + "the bank " * 100)
    (here / "binary.txt").write_bytes(b"a\nb\xff\n")
    (here / "half.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n\n{"text": "c\\ud800"}\n')
    before = sorted(path.name for path in here.iterdir())
    result = run("embed", folder, *arguments)
    assert (result.exit_code, result.output) == (1, f"Error: {message}\n")
    assert sorted(path.name for path in here.iterdir()) == before


def test_a_long_text_is_cut_with_a_word(run, folder, here):
    (here / "long.txt").write_text("the bank " * 100)
    output, _ = embedded(run, folder, "long.txt")
    assert output.startswith(
        "Warning: embed_to: long.txt, line 1 is longer than 64 tokens, the model's limit; it is cut"
    )


def test_lines_are_named_where_many_were_read(run, folder, here, monkeypatch):
    monkeypatch.setattr(sentence_model, "WINDOW", 3)
    monkeypatch.setattr(embed_command, "KEPT", 12)
    lines = [json.dumps({"text": "the bank " * (50 if index == 21 else 1)}) for index in range(40)]
    (here / "many.jsonl").write_text("\n\n".join(lines))
    result = run("embed", folder, "many.jsonl", "-o", "v.npy", "--no-truncate")
    assert "many.jsonl, line 43 has 104 tokens" in result.output


def test_only_what_an_op_says_of_its_texts_names_a_line(here):
    lines = embed_command._Lines(TextFile("texts.txt"))
    assert lines._told("embed_to: texts[0] is long") == "embed_to: texts[0] is long"  # nothing was read yet
    assert len(list(lines)) == 5
    assert lines._told("embed_to: texts[4] is long") == "embed_to: texts.txt, line 5 is long"
    for message in ("embed_to: texts[5] is long", "embed_to: 'texts[1]' is long", "my texts[1]"):
        assert lines._told(message) == message
    with pytest.raises(ValueError, match="^op: texts.txt, line 2$"), lines.named():
        raise _Odd("op: texts[1]", 3)


class _Odd(ValueError):
    """Of more arguments than a message."""

    def __init__(self, message, more):
        super().__init__(message)


def test_the_systems_signals_end_it_unless_they_are_ignored():
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        for number in numbers:
            with pytest.raises(SystemExit) as ended, embed_command._terminable():
                os.kill(os.getpid(), number)
            assert ended.value.code == 128 + number and signal.getsignal(number) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with embed_command._terminable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_sigterm_leaves_nothing(folder, here):
    command = [
        sys.executable,
        "-c",
        "from fastmixer.cli.main import main; main()",
        "embed",
        str(folder),
        "-",
        "-o",
        "v.npy",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdin.write("the bank\n" * 5000)
        process.stdin.flush()
        for _ in range(600):
            if list(here.glob(".writing-*")):
                break
            time.sleep(0.05)
        assert list(here.glob(".writing-*")), process.poll()
        process.terminate()
        process.stdin.close()
        assert process.wait(timeout=30) == 143
    assert not list(here.glob(".writing-*")) and not (here / "v.npy").exists()


def test_the_help_names_every_pooling(run):
    words = run("embed", "--help").output.replace(",", " ").split()
    assert set(POOLINGS) <= set(words) and all(f'"{one}"' in LanguageModel.embedder.__doc__ for one in POOLINGS)


def test_pooling_is_for_language_models(run, folder, trained, here):
    result = run("embed", trained[0], "texts.txt", "-o", "v.npy")
    assert (result.exit_code, result.output) == (
        1, f"Error: {trained[0]} is a language model without pooling files (modules.json, 1_Pooling); give --pooling last or "
        "mean, or a model that is made for vectors\n",
    )  # fmt: skip
    result = run("embed", folder, "texts.txt", "-o", "v.npy", "--pooling", "last")
    assert result.output == f"Error: {folder} says itself how it makes vectors (mean); leave --pooling out\n"
    (here / "texts.txt").write_text("Alice\nwas here\n")
    output, vectors = embedded(run, trained[0], "texts.txt", "--pooling", "mean")
    assert output.startswith("2 texts, ") and np.allclose(np.linalg.norm(vectors, axis=1), 1)


# ---- search ----


@pytest.fixture
def vectors(run, folder, here):
    embedded(run, folder, "texts.txt")
    return here / "v.npy"


def lines(result):
    """(score, line number, text) of each line of output."""
    assert result.exit_code == 0, result.output
    return [re.fullmatch(r" *(-?\d\.\d{4})  ( *\d+)(?:  (.*))?", line).groups() for line in result.output.splitlines()]


def test_search_finds_the_nearest_lines(run, folder, model, vectors):
    found = lines(run("search", folder, "v.npy", "the bank", "--texts", "texts.txt"))
    scores = as_documents(model) @ model.embed("the bank", prompt_name="query")  # the model's own prompts
    order = np.argsort(-scores, kind="stable")
    assert [int(line) - 1 for _, line, _ in found] == order.tolist()
    np.testing.assert_allclose([float(score) for score, _, _ in found], scores[order], atol=1e-4)
    assert [text or "" for _, _, text in found] == [TEXTS[i] for i in order]
    without = lines(run("search", folder, "v.npy", "the bank", "-k", 2, "--prompt-name", "passage"))
    assert without[0] == ("1.0000", "5", None) and len(without) == 2


def test_many_queries_and_json(run, folder, vectors, here):
    (here / "queries.txt").write_text("the bank\nAlice\n")
    result = run("search", folder, "v.npy", "--queries", "queries.txt", "-k", 1, "--prompt-name", "passage")
    assert re.fullmatch(r"the bank\n 1.0000  5\n\nAlice\n 0.\d{4}  \d\n", result.output), result.output
    from_stdin = run(
        "search", folder, "v.npy", "--queries", "-", "-k", 1, "--prompt-name", "passage", stdin="the bank\nAlice\n"
    )
    given = run("search", folder, "v.npy", "the bank", "Alice", "-k", 1, "--prompt-name", "passage")
    assert result.output == from_stdin.output == given.output
    result = run(
        "search",
        folder,
        "v.npy",
        "the bank",
        "Alice",
        "--texts",
        "texts.txt",
        "-k",
        1,
        "--prompt-name",
        "passage",
        "--json",
    )
    first, second = map(json.loads, result.output.splitlines())
    assert first == {"query": "the bank", "results": [{"score": 1.0, "row": 4, "line": 5, "text": "the bank"}]}
    assert second["query"] == "Alice" and second["results"][0]["text"] == TEXTS[second["results"][0]["row"]]


def test_lines_of_json(run, folder, here):
    embedded(run, folder, "texts.jsonl", "--field", "body")
    result = run(
        "search",
        folder,
        "v.npy",
        "the bank",
        "--texts",
        "texts.jsonl",
        "--field",
        "body",
        "-k",
        1,
        "--prompt-name",
        "passage",
    )
    assert result.output == " 1.0000  9  the bank\n"  # every second line is empty


def test_half_precision(run, folder, vectors):
    np.save("half.npy", np.load("v.npy").astype(np.float16))
    one, other = (lines(run("search", folder, name, "the bank")) for name in ("v.npy", "half.npy"))
    assert [line for _, line, _ in one] == [line for _, line, _ in other]


def test_vectors_of_other_lengths_are_compared_by_cosine(run, folder, vectors):
    expected = run("search", folder, "v.npy", "the bank").output
    whole = np.load("v.npy")
    whole[1] *= 1000
    whole[4] *= 1e-3
    np.save("v.npy", whole)
    assert run("search", folder, "v.npy", "the bank").output == expected
    embedded(run, folder, "texts.txt", "--no-normalize")
    assert run("search", folder, "v.npy", "the bank").output == expected


def test_blank_lines_are_no_queries(run, folder, vectors, here):
    (here / "queries.txt").write_text("the bank\n\n  \nAlice\n\n")
    result = run("search", folder, "v.npy", "--queries", "queries.txt", "-k", 1)
    assert result.output == run("search", folder, "v.npy", "the bank", "Alice", "-k", 1).output


def test_queries_have_a_field_of_their_own(run, folder, vectors, here):
    (here / "queries.jsonl").write_text('{"q": "the bank", "text": "x"}\n{"q": "Alice"}\n')
    arguments = ("--texts", "texts.txt", "-k", 2)
    result = run("search", folder, "v.npy", "--queries", "queries.jsonl", "--query-field", "q", *arguments)
    assert result.exit_code == 0
    assert result.output == run("search", folder, "v.npy", "the bank", "Alice", *arguments).output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.npy", "x"], 1, "none.npy is not a file"),
        (["texts.txt", "x"], 1, "texts.txt is not a .npy file: it begins with b'The ba'"),
        (["other.npy", "x"], 1, "other.npy has vectors of 8 numbers, tiny makes them of 32"),
        (["double.npy", "x"], 1, "double.npy must hold float32 or float16; got float64"),
        (["empty.npy", "x"], 1, "empty.npy holds no vectors: its shape is (0, 32)"),
        (["nan.npy", "x"], 1, "search: vectors must be finite; vectors[0, 3] = nan"),
        (["v.npy", "x", "--texts", "two.txt"], 1, "two.txt has 2 texts, v.npy 5 vectors: they were not made of one another"),
        (["v.npy", "x", "--texts", "none.txt"], 1, "none.txt is not a file"),
        (["v.npy", "--queries", "empty.txt"], 1, "empty.txt holds no queries"),
        (["v.npy", "--queries", "blank.txt"], 1, "blank.txt holds no queries"),
        (["v.npy", "x", " "], 2, "QUERY must not be blank"),
        (["v.npy"], 2, "give one or more QUERY, or --queries FILE"),
        (["v.npy", "x", "--queries", "two.txt"], 2, "give one or more QUERY, or --queries FILE"),
        (["v.npy", "x", "-k", "0"], 2, "--count must be >= 1; got 0"),
    ],
)  # fmt: skip
def test_what_search_refuses(run, folder, vectors, here, arguments, code, message):
    whole = np.load("v.npy")
    np.save("other.npy", whole[:, :8].copy())
    np.save("double.npy", whole.astype(np.float64))
    np.save("empty.npy", whole[:0])
    whole[0, 3] = np.nan
    np.save("nan.npy", whole)
    (here / "two.txt").write_text("one\ntwo\n")
    (here / "empty.txt").write_text("")
    (here / "blank.txt").write_text("\n \n")
    result = run("search", folder, *arguments)
    assert result.exit_code == code and result.output.splitlines()[-1] == f"Error: {message}", result.output
