"""`fastmixer info`: what it says beforehand is what a loaded model then has."""

import json
import re
from pathlib import Path

import pytest
from random_models import CONFIGS, random_source

from fastmixer.model.decoder import Decoder
from fastmixer.model.plan import plan
from fastmixer.opening import load
from fastmixer.weights.convert import convert
from fastmixer.weights.encoder_folder import open_encoder

TINY = Path(__file__).parents[1] / "model" / "tiny"


@pytest.mark.parametrize("weights", ["auto", "float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_the_plan_is_what_the_decoder_does(kind, weights):
    source = random_source(kind, "Q8_0")
    planned, decoder = plan(source, weights), Decoder(source, weights, progress=False)
    assert planned.kinds == decoder.kinds and planned.windows == decoder.windows
    assert planned.weight_bytes == pytest.approx(decoder.nbytes, rel=0.005)
    for group in range(len(planned.windows)):
        assert planned.page_bytes(group, "int8") == decoder.page_bytes(group, "int8")
    assert (
        sum(planned.page_bytes(g, "int8") for g in range(len(planned.windows))) == decoder.new_pages(1, "int8").nbytes
    )


def test_as_text(run, trained):
    result = run("info", trained[0], "--context", 8, "--weights", "int8", "--cache", "float32")
    assert result.exit_code == 0, result.output
    lines = dict(line.split(maxsplit=1) for line in result.output.splitlines())
    assert lines["architecture"] == "fastmixer: 4 layers of width 128, vocabulary 66"
    assert lines["context"] == "8 tokens" and lines["weights"].startswith("int8: matrices 25 int8; ")
    assert lines["cache"].startswith("float32: ") and "needed, " in lines["memory"]
    assert lines["tokenizer"].startswith("characters, 66 pieces") and lines["tokenizer"].endswith("; no chat template")


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "phi3", "llama-yarn"])
def test_as_json_of_folders_of_others(run, name):
    result = run("info", TINY / name, "--json", "--tensors")
    found = json.loads(result.output)
    config = json.loads((TINY / name / "config.json").read_text())
    assert (
        found["architecture"]["name"] == config["model_type"] and found["architecture"]["vocab"] == config["vocab_size"]
    )
    assert len(found["tensors"]["list"]) == found["tensors"]["count"]
    assert found["tensors"]["bytes"] == sum(one["bytes"] for one in found["tensors"]["list"])
    assert found["memory"]["needed"] == found["weights"]["bytes"] + found["cache"]["bytes"]
    assert found["tokenizer"] is None


def test_of_a_real_file(run, smollm2_path):
    found = json.loads(run("info", smollm2_path, "--json", "--context", 512).output)
    assert found["tensors"]["types"]["Q4_1"]["count"] == 210 and found["parameters"] == 134_515_008
    assert found["weights"]["matrices"] == {"int8": 1, "int4": 210}
    assert found["cache"] == {"dtype": "bfloat16", "tokens": 512, "bytes": 512 * 23_040}
    assert found["tokenizer"]["end"] == [{"id": 0, "piece": "<|endoftext|>"}, {"id": 2, "piece": "<|im_end|>"}]
    assert found["tokenizer"]["chat_template"] is True
    model = load(smollm2_path, context=512, progress=False)
    assert found["weights"]["bytes"] == pytest.approx(model.info()["weights"]["bytes"], rel=0.001)


def test_too_much_for_this_machine_is_said(run, trained, monkeypatch):
    monkeypatch.setattr("fastmixer.memory.available_memory", lambda: 1_000_000)
    assert "1.0 MB available: NOT ENOUGH; try a smaller --context" in run("info", trained[0]).output


def test_bad_options(run, trained):
    for options, text in (
        (["--cache", "int4"], "info: cache must be one of 'float32', 'bfloat16', 'int8'; got 'int4'"),
        (
            ["--weights", "int5"],
            "plan: weights must be one of 'auto', 'float32', 'bfloat16', 'int8', 'int4'; got 'int5'",
        ),
    ):
        result = run("info", trained[0], *options)
        assert (result.exit_code, result.output) == (1, f"Error: {text}\n")
    result = run("info", trained[0], "--context", 17)
    assert result.exit_code == 1 and "context must be an integer from 1 to context 16; got 17" in result.output


def test_what_is_kept_of_packed_weights(run, tmp_path, monkeypatch):
    path = convert(random_source("llama"), tmp_path / "m.gguf", "Q4_0")
    assert "packed " not in run("info", path).output
    monkeypatch.setenv("FASTMIXER_PACKED_CACHE", str(tmp_path / "kept"))
    assert re.search(rf"^packed +not kept yet in {tmp_path}/kept/\w+-auto-", run("info", path).output, re.MULTILINE)
    result = run("generate", path, "Alice", "-n", 2, "--temperature", 0)
    assert result.exit_code == 0, result.output
    (kept,) = (tmp_path / "kept").glob("*.packed")
    assert f"{kept.stat().st_size / 1000:,.1f} kB kept in {kept}" in run("info", path).output
    found = json.loads(run("info", path, "--json", "--weights", "int8").output)["packed_cache"]
    assert found["bytes"] == 0 and "-int8-" in found["path"]
    monkeypatch.setenv("FASTMIXER_PACKED_CACHE", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    again = run("generate", path, "Alice", "-n", 2, "--temperature", 0, "--packed-cache")
    assert again.output == result.output
    assert len(list((tmp_path / "home" / "fastmixer" / "packed").glob("*.packed"))) == 1


def test_what_auto_rounds_is_said(run, tmp_path, monkeypatch):
    path = convert(random_source("llama"), tmp_path / "m.gguf", "F16")
    for is_fast, text in ((True, "; F16 rounded to bfloat16 (--weights float32 keeps every digit)\n"), (False, " kB\n")):
        monkeypatch.setattr("fastmixer.model.decoder.is_fast", lambda answer=is_fast: answer)
        assert re.search(rf"^weights +auto: matrices .*{re.escape(text)}", run("info", path).output, re.MULTILINE)
        found = json.loads(run("info", path, "--json").output)["weights"]
        assert found["rounded"] == (["F16"] if is_fast else [])
    assert "rounded" not in run("info", path, "--weights", "bfloat16").output  # it was asked for


def test_a_strangers_names_do_nothing_to_a_terminal(run, tmp_path):
    source = random_source("llama")
    source.name = "a\x1b[2J\nmodel"
    result = run("info", convert(source, tmp_path / "m.gguf"))
    assert result.stdout.startswith("model        a\\x1b[2J\\nmodel\n") and "\x1b" not in result.output


def test_of_encoders(run):
    folder = TINY.parents[1] / "embed" / "tiny"
    result = run("info", folder / "bert", "--tensors")
    assert result.exit_code == 0, result.output
    lines = dict(line.split(maxsplit=1) for line in result.output.splitlines())
    config = open_encoder(folder / "bert").config
    assert lines["architecture"].startswith(f"bert: an encoder, {config.layers} layers of width {config.dim}")
    assert lines["gives"] == f"vectors of {config.dim} numbers, pooling mean"
    assert "layers.0.attention.q.weight" in lines
    for name in ("modernbert", "xlm-roberta"):
        found = json.loads(run("info", folder / name, "--json").output)
        assert found["architecture"]["name"] == name and found["classes"] is None and found["parameters"] > 1000
    found = json.loads(run("info", folder / "mpnet-classifier", "--json").output)
    assert found["pooling"] is None and found["classes"] >= 1
    assert "scores of pairs, " in run("info", folder / "mpnet-classifier").output
