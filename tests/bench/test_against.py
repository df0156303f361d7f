"""Comparisons with a peer: interleaved, the fastest of its modes counts, ratios and targets by medians."""

import builtins
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from fastmixer.bench import against
from fastmixer.bench.against import Outcome
from fastmixer.bench.isolated import run_isolated
from fastmixer.bench.long import Case, Growth
from fastmixer.bench.peers import PEERS, Comparison, find_peer, openblas_avx2, peer_names
from fastmixer.bench.peers.numba_step import in_numba
from fastmixer.bench.workload import Workload
from fastmixer.cli.main import main
from fastmixer.kernels.select import implementation, native_levels
from fastmixer.kernels.threads import get_threads
from fastmixer.ops.bfloat16 import is_fast


def _comparison(order=None, unit="seconds", target=2.0, share=False):
    def prepare(name, value=None):
        def make():
            return lambda: order.append(name) if value is None else value

        return make

    amounts = (100, 300, 250) if unit == "bytes" else (None,) * 3
    theirs = {"slow": prepare("slow", amounts[1]), "fast": prepare("fast", amounts[2])}
    return Comparison("group", "some work", prepare("ours", amounts[0]), theirs, target, unit, share)


def test_rounds_are_interleaved(monkeypatch):
    monkeypatch.setattr(against, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(against, "ROUND_SECONDS", 0.0)
    order = []
    (outcome,) = against.run([_comparison(order)], rounds=3)
    assert order == ["ours"] * 2 + ["slow"] * 2 + ["fast"] * 2 + ["ours", "slow", "fast"] * 3
    assert set(outcome.values) == set(outcome.spread) == {"ours", "slow", "fast"}


def test_memory_is_measured_once_and_less_is_better():
    (outcome,) = against.run([_comparison(unit="bytes")])
    assert outcome.values == {"ours": 100, "slow": 300, "fast": 250} and outcome.best == "fast"
    assert outcome.ratio == 2.5 and outcome.reached


def test_a_row_and_a_page():
    spread = {"ours": 0.05, "slow": 0.1, "fast": 0.2}
    outcome = Outcome(_comparison([], target=3), {"ours": 0.5, "slow": 1.5, "fast": 1.0}, spread)
    line = against.row(outcome)
    assert re.search(r"some work +500 ms +1 s  fast +2\.00x +5%/20%  >= 3x NO$", line)
    page = against.markdown([outcome], {"processor": "a 6502", "torch": "2"})
    assert "- processor: a 6502\n- torch: 2\n" in page
    assert "| group | some work | 500 ms | 1 s | fast | 2.00x | 5% / 20% | 3x, not reached |" in page


def test_a_row_of_a_limit_and_one_that_is_held_to_nothing():
    values, spread = {"ours": 1.0, "slow": 2.0, "fast": 0.9}, dict.fromkeys(("ours", "slow", "fast"), 0.0)
    limit = Outcome(_comparison([], target=0.88, share=True), values, spread)
    assert against.row(limit).endswith(" 90%       0%/0%  >= 88% yes")
    free = Outcome(_comparison([], target=None), values, spread)
    assert against.row(free).endswith(" 0.90x       0%/0%") and free.reached
    page = against.markdown([limit, free], {}, "## More\n")
    assert "| fast | 90% | 0% / 0% | 88%, reached |\n" in page and "| fast | 0.90x | 0% / 0% |  |\n" in page
    assert page.endswith("## More\n")


def test_names_of_peers():
    assert peer_names("torch, machine,torch") == ["torch", "machine"]
    assert peer_names("machine,all") == ["machine", "torch", "openblas-avx2", "numba"]
    with pytest.raises(ValueError, match="^bench: --against must be of torch, .*, or all; got ' , '$"):
        peer_names(" , ")


@pytest.mark.parametrize("name", ["machine", "openblas-avx2", "numba"])
def test_peers_say_what_they_compare_and_build_nothing_yet(name):
    module = find_peer(name)
    comparisons = module.comparisons()
    assert comparisons and len({(one.group, one.name) for one in comparisons}) == len(comparisons)
    assert all(callable(one.ours) and one.theirs for one in comparisons)


def test_the_machine_is_a_limit():
    found = {one.name: one for one in find_peer("machine").comparisons() if one.group == "GEMM float32"}
    assert len(found) == 15 and all(one.target == 0.88 and one.share for one in found.values())
    assert found["256x768x768 forward"].theirs["FMA peak"]()() == pytest.approx(2 * 256 * 768 * 768, rel=0.01)


def test_numba_s_step_runs_on_numba():
    seen = []
    workload = Workload("step", "x", lambda rng: lambda: seen.append(implementation("matmul")))
    before = implementation("matmul")
    in_numba(workload)()()
    assert seen == ["jit"] and implementation("matmul") == before


@pytest.mark.parametrize("shape", [(5, 7, 6), (5, openblas_avx2.PADDED_VOCAB, 3)], ids=["layer", "head"])
@pytest.mark.parametrize("part", openblas_avx2.PARTS)
def test_openblas_multiplies_the_same(shape, part):
    ours, theirs = (openblas_avx2._product(*shape, part, ours=which)() for which in (True, False))
    np.testing.assert_allclose(ours(), theirs(), rtol=1e-3, atol=1e-3)


def test_openblas_must_be_held(monkeypatch):
    monkeypatch.setattr(openblas_avx2, "_openblas", lambda: "OpenBLAS 0.3.30 DYNAMIC_ARCH SkylakeX MAX_THREADS=64")
    with pytest.raises(RuntimeError, match="OPENBLAS_CORETYPE=Haswell must be set .* runs '.*SkylakeX"):
        openblas_avx2.versions()


AVX2_CODE = """
import json, sys
from fastmixer.bench import against, isolated
from fastmixer.bench.peers import openblas_avx2 as peer
against.SETTLE_SECONDS = against.ROUND_SECONDS = 0
peer.LINEAR_SHAPES = ((8, 8, 8),)
isolated.main("openblas-avx2", "1", "2")
"""


@pytest.mark.skipif("x86_64_v3" not in native_levels("matmul"), reason="no AVX2 kernels run here")
def test_both_are_held_to_avx2_in_their_process():
    environment = {**os.environ, **PEERS["openblas-avx2"].environment}
    found = subprocess.run(
        [sys.executable, "-c", AVX2_CODE], env=environment, capture_output=True, text=True, check=True
    )
    versions, *outcomes = map(json.loads, found.stdout.splitlines())
    assert re.fullmatch(r"\S+ held to Haswell \(AVX2\), ours to x86_64_v3", versions["OpenBLAS"])
    assert [set(outcome["values"]) for outcome in outcomes] == [{"ours", "OpenBLAS"}] * 3


def test_a_process_s_outcomes_and_its_end(monkeypatch):
    comparison = _comparison([])
    lines = ['{"lib": "1"}', '{"values": {"ours": 1, "slow": 3, "fast": 2}, "spread": {"ours": 0}}']
    code = f"import sys; print({lines[0]!r}); print({lines[1]!r}); sys.exit('it broke')"
    real = subprocess.Popen
    asked = []

    def popen(command, env, **options):
        asked.append((command[3:], env["OPENBLAS_CORETYPE"], env["FASTMIXER_ISA"], env["OPENBLAS_NUM_THREADS"]))
        return real([sys.executable, "-c", code], env=env, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    versions, outcomes = run_isolated("openblas-avx2", [comparison, comparison], 3, ("group",))
    threads = str(get_threads())
    assert asked == [(["openblas-avx2", "3", threads, "group"], "Haswell", "x86_64_v3", threads)]
    assert versions == {"lib": "1"} and next(outcomes).ratio == 2
    with pytest.raises(ChildProcessError, match="^bench: --against openblas-avx2 failed in its own process: it broke$"):
        next(outcomes)


def test_a_process_that_complains_at_length_is_heard_out(monkeypatch):
    """More errors than a pipe holds, before its first line: it goes on writing, and is read."""
    code = "import sys; sys.stderr.write(('x' * 79 + chr(10)) * 5000); print('{\"lib\": \"1\"}')"
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: real([sys.executable, "-c", code], **options))
    versions, outcomes = run_isolated("openblas-avx2", [_comparison([])], 1)
    assert versions == {"lib": "1"}
    with pytest.raises(ChildProcessError, match="^bench: --against openblas-avx2 failed in its own process: x{79}$"):
        next(outcomes)


def test_the_command_writes_one_page(monkeypatch, tmp_path):
    monkeypatch.setattr(against, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(against, "ROUND_SECONDS", 0.0)
    small = find_peer("machine")
    monkeypatch.setattr(small, "comparisons", lambda: [_comparison([], target=None)])
    growth = Growth([Case(8, False, [1.0], [0.1]), Case(8, True, [1.2], [0.1]), Case(32, True, [1.5], [0.4])])
    monkeypatch.setattr("fastmixer.bench.long.measure", lambda: growth)
    path = tmp_path / "page.md"
    result = CliRunner().invoke(
        main, ["bench", "--against", "machine", "--long", "--markdown", str(path), "--rounds", "1"]
    )
    assert result.exit_code == 0, result.output
    page = path.read_text()
    assert "| group | some work | " in page and "## Long context" in page and str(growth) in result.output
    result = CliRunner().invoke(main, ["bench", "norm", "--against", "machine"])
    assert result.exit_code == 2 and "nothing to compare in norm; there are group" in result.output


def test_unknown_peers_are_named():
    result = CliRunner().invoke(main, ["bench", "--against", "machine,jax"])
    assert result.exit_code == 1 and result.output.endswith("numba, llama.cpp, openvino, or all; got 'jax'\n")


def test_a_peer_that_is_not_there(monkeypatch):
    with pytest.raises(
        ValueError,
        match="^bench: --against must be of torch, openblas-avx2, machine, numba, llama.cpp, openvino, or all; got 'jax'$",
    ):
        find_peer("jax")
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == "torch":
            raise ImportError("no torch", name="torch")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(__import__("sys").modules, "fastmixer.bench.peers.torch_peer", raising=False)
    result = CliRunner().invoke(main, ["bench", "--against", "torch"])
    assert result.exit_code == 1
    assert result.output == 'Error: bench: --against torch needs torch: pip install "fastmixer[peers]"\n'


def test_torch_on_small_work():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    peer = find_peer("torch")
    assert peer.versions()["torch"]
    comparisons = peer.comparisons()
    assert {one.group for one in comparisons} == {"attention", "embedding", "head", "step", "memory"}
    assert any("bfloat16" in one.name for one in comparisons) == is_fast()
    ours, theirs = peer._our_attention((1, 2, 16, 8))(), peer._their_attention((1, 2, 16, 8))()
    ours(), theirs()
    peer._our_embedding()(), peer._their_sparse()(), peer._their_dense()()
