"""Sentence embeddings beside other engines: the texts, who takes part, rows and pages, and each engine over tiny models."""

import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
from cached_models import MINILM, NotAvailable, cached_folder
from click.testing import CliRunner
from tiny_encoders import TINY, write_modules, write_pooling, write_tokenizer

from fastmixer.bench import embed, embed_table
from fastmixer.bench.embed import LONG, ONE, SHORT, EmbedBench, Entrant
from fastmixer.bench.inference import Row
from fastmixer.bench.inference_worker import OUR_EMBEDDER, Worker
from fastmixer.bench.peers.embed_onnx import onnx_file
from fastmixer.cli.main import main
from fastmixer.embed import load_sentence_model
from fastmixer.embed.sentence_tokenizer import SentenceTokenizer
from fastmixer.weights.encoder_folder import open_encoder

TEXTS = ["the bank by the river", "water", "alice introduced bob to chloe at the door", "bob"]


@pytest.fixture
def folder(tmp_path):
    """The folder of a tiny encoder with mean pooling."""
    folder = tmp_path / "bert"
    shutil.copytree(TINY / "bert", folder)
    write_tokenizer(folder)
    write_modules(folder, ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    write_pooling(folder, "mean_tokens")
    return folder


def test_short_sentences_are_those_of_every_run():
    sentences = embed.short_sentences()
    random.seed(0)
    assert sentences == [" ".join(random.choices(embed.WORDS, k=random.randint(5, 40))) for _ in range(256)]
    assert {len(text.split()) for text in sentences} == set(range(5, 41))


def test_long_texts_have_so_many_tokens():
    try:
        minilm = cached_folder(MINILM)
    except NotAvailable as error:
        pytest.skip(str(error))
    tokenizer = SentenceTokenizer(minilm, vocab=30522, context=512, max_length=256)
    texts = embed.long_texts(tokenizer)
    lengths = [len(ids) for ids in tokenizer.encode("test", texts).ids]
    assert len(set(texts)) == 64 and min(lengths) >= 200 and max(lengths) <= 256 and len(set(lengths)) > 20


def test_operations_are_counted_by_hand():
    config = replace(open_encoder(TINY / "bert").config, layers=2, dim=3, heads=1, hidden=5)
    maps = 4 * 3 * 3 + 2 * 3 * 5
    assert embed.operations(config, [2, 4]) == 2 * (2 * maps * 6 + 4 * 3 * (4 + 16))


def test_peers_are_named_and_missing_ones_told(monkeypatch):
    monkeypatch.setattr(embed, "find_spec", lambda package: None if package == "sentence_transformers" else True)
    assert embed.peers_of(None) == () and embed.peers_of("openvino, onnxruntime,openvino") == ("openvino", "onnxruntime")
    with pytest.raises(
        ImportError, match=r'^bench embed: --against torch needs sentence-transformers: pip install "fastmixer\[peers\]"$'
    ):
        embed.peers_of("all")
    for text in ("tensorflow", "", ","):
        with pytest.raises(ValueError, match=f"must be of onnxruntime, openvino, torch, or all; got '{text}'"):
            embed.peers_of(text)


# ---- turns, with workers that only tell ----


class FakeWorker:
    """Takes so many seconds, by batch, a text."""

    def __init__(self, log, name, seconds):
        self.log, self.name, self.seconds = log, name, seconds

    def run(self, texts, batch, repeats=1):
        self.log.append((self.name, batch, repeats))
        seconds = self.seconds if isinstance(self.seconds, float) else self.seconds[batch]
        return {"seconds": seconds * len(texts) if len(texts) > 1 else seconds}


def entrants(log, fast_bfloat16=True):
    def one(engine, precision, variant, seconds):
        return Entrant(engine, precision, variant, FakeWorker(log, f"{engine} {precision} {variant}".strip(), seconds))

    ours = [one("ours", precision, "", took) for precision, took in (("int8", 1.0), ("bfloat16", 2.0), ("float32", 4.0))]
    return [
        *ours,
        one("ONNX Runtime", "int8", "plain", {1: 3.0, 8: 3.0, 16: 2.0, 32: 2.5, 64: 2.5}),
        one("ONNX Runtime", "int8", "fused", {1: 9.1, 8: 6.0, 16: 5.0, 32: 4.0, 64: 4.0}),
        one("OpenVINO", "bfloat16", "", 3.0 if fast_bfloat16 else 100.0),
        one("OpenVINO", "float32", "", 5.0),
    ]  # fmt: skip


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(embed, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(embed, "LONG_RUN", 1e9)
    monkeypatch.setattr(embed, "TOO_LONG", 1e9)
    monkeypatch.setattr(embed, "probe_flops", lambda seconds, precision: {"int8": 8e9}.get(precision, 2e9))
    return EmbedBench(("onnxruntime", "openvino"), rounds=2, threads=1)


def test_each_peer_is_warmed_with_its_best_batch_and_then_takes_turns(bench, monkeypatch):
    monkeypatch.setattr(embed, "is_fast", lambda: True)
    log = []
    rows = list(bench._workload(SHORT, ["a", "b"], 4_000_000_000, entrants(log)))
    racing = [entry for entry in log if entry[0].startswith("ours")]
    assert len(racing) == 3 * 3 and log.count(("ONNX Runtime int8 plain", 16, 1)) == 2 + 2
    assert [entry[0] for entry in log[-6:]] == [
        "ours int8", "ours bfloat16", "ours float32", "ONNX Runtime int8 plain", "OpenVINO bfloat16", "OpenVINO float32",
    ]  # fmt: skip
    assert bench.remarks == [
        f"{SHORT}: ONNX Runtime int8 fused, batch 32 left out, at 2.0 times the best peer's time"
    ]
    int8, bfloat16, float32 = rows
    assert (int8.name, int8.unit, int8.target) == (f"{SHORT}, int8", "texts/s", 1.4)
    assert int8.ours == [1.0, 1.0] and int8.theirs == {"ONNX Runtime int8 plain, batch 16": [0.5, 0.5]} and int8.ratio == 2
    assert int8.limit == "2 of 8 GOP/s (25%)" and bfloat16.limit == "1 of 2 GFLOP/s (50%)"
    assert list(bfloat16.theirs) == ["OpenVINO bfloat16, batch 8"] and bfloat16.ratio == 1.5 and bfloat16.reached
    assert float32.ratio == 1.25 and float32.target == 1.2


def test_one_sentence_is_a_latency_and_what_is_far_behind_stays_out(bench, monkeypatch):
    monkeypatch.setattr(embed, "is_fast", lambda: True)
    log = []
    all_of_them = entrants(log)
    rows = list(bench._workload(ONE, ["a"], 1, all_of_them))
    assert rows[0].unit == "ms" and rows[0].ours == [1e3, 1e3] and rows[0].ratio == 3.0 and rows[0].target == 2.5
    assert rows[0].theirs == {"ONNX Runtime int8 plain": [3e3, 3e3]} and rows[2].target is None
    assert log[-1] == ("OpenVINO float32", 1, embed.ONE_REPEATS)
    assert [one.is_out for one in all_of_them] == [False, False, False, False, True, False, False]
    log.clear()
    list(bench._workload(LONG, ["a", "b"], 1, all_of_them))
    assert not any(name == "ONNX Runtime int8 fused" for name, _, _ in log)


def test_without_instructions_for_bfloat16_a_peers_float32_counts(bench, monkeypatch):
    monkeypatch.setattr(embed, "is_fast", lambda: False)
    others = entrants([], fast_bfloat16=False)
    others.append(Entrant("PyTorch", "float32", "", FakeWorker([], "PyTorch", 3.0)))  # which is no reason to leave it out
    rows = list(bench._workload(SHORT, ["a", "b"], 1, others))
    assert list(rows[1].theirs) == ["OpenVINO float32, batch 8"] and rows[1].ratio == 2.5
    assert list(rows[2].theirs) == ["OpenVINO float32, batch 8", "PyTorch float32, batch 8"] and rows[2].ratio == 0.75
    assert bench.remarks[-1] == (
        f"{SHORT}: OpenVINO bfloat16, batch 8 left out, and of what follows, at 20.0 times the best peer's time"
    )


# ---- what is shown ----


def test_lines_and_a_page(bench):
    beside = Row("some work", "texts/s", [20.0, 10.0], {"OpenVINO float32, batch 8": [10.0, 10.0]}, 2.5, "1 of 2 GOP/s (50%)")
    alone = Row("other work", "ms", [2.0, 2.0], {}, None, "3 of 4")
    line, short = embed_table.row(beside), embed_table.row(alone)
    assert line.split("  ")[0] == "some work" and line.split()[-11:] == (
        "float32, batch 8 1.50x 67%/0% >= 2.5x NO 1 of 2 GOP/s (50%)".split()[-11:]
    )
    assert short.split() == ["other", "work", "2", "ms", "0%", "3", "of", "4"]
    bench.versions, bench.remarks = {"OpenVINO": "9"}, ["a remark"]
    page = embed_table.markdown([beside, alone], bench, {"processor": "a 6502"})
    assert "`fastmixer bench embed --against onnxruntime,openvino --markdown benchmarks/RESULTS-embed.md`" in page
    assert "- processor: a 6502\n- OpenVINO: 9\n- rounds: 2" in page and page.endswith("- a remark\n")
    row = "| some work | 15 | 10 | texts/s | OpenVINO float32, batch 8 | 1.50x | 67% / 0% | >= 2.5x, not reached | 1 of 2 GOP/s (50%) |"
    assert row in page and "| other work | 2 |  | ms |  |  | 0% |  | 3 of 4 |" in page
    assert embed_table.footer(bench) == "a remark\nOpenVINO 9"


def test_the_command(tmp_path, monkeypatch):
    row = Row("some work", "ms", [20.0], {"x": [10.0]}, 2.0, "1 of 2")
    monkeypatch.setattr(EmbedBench, "rows", lambda self: iter([row]))
    page = tmp_path / "page.md"
    run = CliRunner().invoke(main, ["bench", "embed", "--markdown", str(page)])
    assert run.exit_code == 0 and "some work" in run.output and "| some work | 20 |" in page.read_text()
    for arguments, message in (
        (["--long"], "--long is not of `bench embed`"),
        (["--profile"], "--profile is not of `bench embed`"),
        (["--against", "numba"], "bench embed: --against must be of onnxruntime, openvino, torch, or all; got 'numba'"),
    ):
        run = CliRunner().invoke(main, ["bench", "embed", *arguments])
        assert run.exit_code and message in run.output, run.output


# ---- the engines themselves ----


def test_a_worker_of_ours(folder):
    worker = Worker(OUR_EMBEDDER, folder, 1, first={"texts": ["one"]}, weights="float32")
    try:
        found = worker.run(texts=TEXTS, batch=2, repeats=3, vectors=True)
        assert worker.opened["ran"].startswith("float32") and worker.seconds > worker.opened["first_token_seconds"] > 0
        assert found["seconds"] > 0
        np.testing.assert_allclose(found["vectors"], load_sentence_model(folder, "float32").embed(TEXTS), atol=1e-6)
    finally:
        worker.close()


@pytest.fixture
def graph(tmp_path):
    """The folder of an ONNX file: of each text its number of tokens, and the sum of their ids."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "time"]) for name in ("ids", "mask")]
    nodes = [
        helper.make_node("Mul", ["ids", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axes"], ["total"]),
        helper.make_node("ReduceSum", ["mask", "axes"], ["length"]),
        helper.make_node("Concat", ["length", "total"], ["both"], axis=1),
        helper.make_node("Cast", ["both"], ["vectors"], to=TensorProto.FLOAT),
    ]
    outputs = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", 2])]
    axes = [helper.make_tensor("axes", TensorProto.INT64, [1], [1])]
    made = helper.make_graph(nodes, "tiny", inputs, outputs, axes)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, onnx_file(tmp_path, "plain", "float32"))
    return tmp_path


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_padded_batches_come_back_in_order(folder, graph, engine):
    module = pytest.importorskip(f"fastmixer.bench.peers.embed_{engine}", reason=f"{engine} is not installed")
    options = {"graph": "plain"} if engine == "onnxruntime" else {}
    made = module.Engine(str(folder), 1, onnx=str(graph), precision="float32", **options)
    source = open_encoder(folder)
    tokenizer = SentenceTokenizer(folder, vocab=source.config.vocab, context=source.config.context)
    expected = [[len(ids), ids.sum()] for ids in tokenizer.encode("test", TEXTS).ids]
    assert len({length for length, _ in expected}) > 1
    for batch in (1, 3, 8):
        found = made.run(texts=TEXTS, batch=batch, vectors=True)
        assert found["vectors"] == expected and found["seconds"] > 0
    assert list(made.about()) == ["versions", "ran"]


def test_torch_does_the_same_work(folder):
    module = pytest.importorskip("fastmixer.bench.peers.embed_torch", reason="torch or transformers is not installed")
    vectors = module.Engine(str(folder), 1).run(texts=TEXTS, batch=3, vectors=True)["vectors"]
    np.testing.assert_allclose(vectors, load_sentence_model(folder, "float32").embed(TEXTS), atol=1e-5)
