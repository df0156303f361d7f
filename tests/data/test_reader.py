"""Batches: every window once an epoch, targets one ahead, and a position that can be saved."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmixer.data import BatchReader, TokenShard, iterate_batches
from fastmixer.data.shards import write_shard


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """A shard whose token at place i is i."""
    path = tmp_path_factory.mktemp("counting") / "s"
    write_shard(path, np.arange(1000, dtype=np.uint16), 1000, bytes(16))
    return TokenShard.open(path)


def test_targets_are_one_token_ahead(counting):
    ids, targets = BatchReader(counting, 4, 16).next()
    assert ids.shape == targets.shape == (4, 16) and ids.dtype == targets.dtype == np.int64
    np.testing.assert_array_equal(targets, ids + 1)


def test_an_epoch_reads_every_window_once_and_the_next_in_another_order(counting):
    reader = BatchReader(counting, 1, 16)
    epochs = []
    for epoch in range(2):
        starts = []
        while reader.epoch == epoch and reader.position < len(reader._starts):
            starts.append(int(reader.next()[0][0, 0]))
        assert len(set(starts)) == len(starts) >= 61
        assert sorted(np.diff(sorted(starts))) == [16] * (len(starts) - 1)
        epochs.append(starts)
        reader.next()
        reader.position -= 1
    assert epochs[0] != epochs[1]


def test_the_seed_decides(counting):
    first = [BatchReader(counting, 4, 16, seed).next()[0].tolist() for seed in (1, 1, 2)]
    assert first[0] == first[1] != first[2]


@settings(max_examples=25, deadline=None)
@given(before=st.integers(0, 100), batch=st.integers(1, 9), time=st.integers(1, 60), seed=st.integers(0, 9))
def test_a_restored_reader_goes_on_where_the_other_stood(counting, before, batch, time, seed):
    reader = BatchReader(counting, batch, time, seed)
    for _ in range(before):
        reader.next()
    restored = BatchReader(counting, batch, time, seed)
    restored.restore(json.loads(json.dumps(reader.state())))
    for _ in range(40):
        for found, expected in zip(restored.next(), reader.next(), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_state_of_another_reader_is_refused(counting):
    state = BatchReader(counting, 4, 16, seed=1).state()
    with pytest.raises(ValueError, match=re.escape("the saved seed is 1; this reader has 2")):
        BatchReader(counting, 4, 16, seed=2).restore(state)
    with pytest.raises(ValueError, match=re.escape("the saved time is 16; this reader has 8")):
        BatchReader(counting, 4, 8, seed=1).restore(state)


def test_a_state_of_other_tokens_is_refused(counting, tmp_path):
    state = BatchReader(counting, 4, 16).state()
    for name, step, digest, what in (("a", -1, bytes(16), "their checksum"), ("b", 1, b"x" * 16, "the digest of their tokenizer")):
        write_shard(tmp_path / name, np.array(counting.tokens[::step]), 1000, digest)
        reader = BatchReader(TokenShard.open(tmp_path / name), 4, 16)
        text = f"BatchReader: {tmp_path / name} holds other tokens than those that were read: {what} is "
        with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
            reader.restore(state)
        reader.restore({key: value for key, value in state.items() if key not in ("crc", "tokenizer")})  # as once saved


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"epoch": None}, "the saved epoch must be an integer >= 0; got None"),
        ({"epoch": 1.0}, "the saved epoch must be an integer >= 0; got 1.0"),
        ({"position": -1}, "the saved position must be an integer >= 0; got -1"),
        ({"position": 99}, "the saved position must be at most 61, the windows of an epoch; got 99"),
    ],
)
def test_a_damaged_state_is_named(counting, change, text):
    reader = BatchReader(counting, 4, 16)
    with pytest.raises(ValueError, match=f"^BatchReader: {re.escape(text)}$"):
        reader.restore({**reader.state(), **change})


def test_validation_reads_in_order(counting):
    batches = list(iterate_batches(counting, 8, 30))
    ids = np.concatenate([ids for ids, _ in batches])
    np.testing.assert_array_equal(ids[:, 0], np.arange(0, 990, 30))
    assert len(list(iterate_batches(counting, 8, 30, limit=2))) == 2


def test_text_shorter_than_the_context_says_how_much_is_missing(tmp_path):
    write_shard(tmp_path / "s", np.arange(10, dtype=np.uint16), 512, bytes(16))
    shard = TokenShard.open(tmp_path / "s")
    text = f"BatchReader: {tmp_path / 's'} has 10 tokens; a context of 10 needs at least 11. Give more text or a shorter context"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        BatchReader(shard, 1, 10)
    assert BatchReader(shard, 1, 9).next()[0].tolist() == [list(range(9))]


@pytest.mark.parametrize(("name", "value"), [("batch", 0), ("time", 0), ("time", 1.5)])
def test_bad_sizes(counting, name, value):
    with pytest.raises(ValueError, match=f"BatchReader: {name} must be an integer >= 1; got {value}"):
        BatchReader(counting, **{"batch": 1, "time": 1, name: value})
