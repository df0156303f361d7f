"""Comparisons with a peer: interleaved, the fastest of its modes counts, ratios and targets by medians."""

import builtins
import re

import pytest
from click.testing import CliRunner

from fastmixer.bench import against
from fastmixer.bench.against import Outcome
from fastmixer.bench.peers import PEERS, Comparison, find_peer
from fastmixer.cli.main import main


def _comparison(order=None, unit="seconds", target=2.0):
    def prepare(name, value=None):
        def make():
            return lambda: order.append(name) if value is None else value

        return make

    amounts = (100, 300, 250) if unit == "bytes" else (None,) * 3
    theirs = {"slow": prepare("slow", amounts[1]), "fast": prepare("fast", amounts[2])}
    return Comparison("group", "some work", prepare("ours", amounts[0]), theirs, target, unit)


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


def test_a_peer_that_is_not_there(monkeypatch):
    with pytest.raises(ValueError, match="^bench: --against must be one of torch; got 'jax'$"):
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
    assert set(PEERS) == {"torch"} and peer.versions()["torch"]
    comparisons = peer.comparisons()
    assert {one.group for one in comparisons} == {"attention", "embedding", "head", "step", "memory"}
    ours, theirs = peer._our_attention((1, 2, 16, 8))(), peer._their_attention((1, 2, 16, 8))()
    ours(), theirs()
    peer._our_embedding()(), peer._their_sparse()(), peer._their_dense()()
