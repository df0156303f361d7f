"""fm.sample: seeds, parameters and their exact errors."""

import numpy as np
import pytest

from fastmixer.ops.sampling import sample

LOGITS = np.array([[0.0, 3.0, 1.0, 3.0], [2.0, -1.0, 0.5, 0.0]], np.float32)


def test_greedy_needs_no_randomness_and_takes_the_lower_of_equals():
    ids = sample(LOGITS, temperature=0)
    assert ids.dtype == np.int64
    assert ids.tolist() == [1, 0]


def test_a_seed_repeats_its_ids():
    first, second = (
        [sample(LOGITS, temperature=2.0, generator=generator).tolist() for _ in range(20)]
        for generator in (np.random.default_rng(7), np.random.default_rng(7))
    )
    assert first == second
    assert len({tuple(ids) for ids in first}) > 1


def test_logits_stay_as_they_are_and_may_be_read_only_and_strided(rng):
    logits = rng.standard_normal((6, 40), np.float32)[::2, ::-2]
    logits.flags.writeable = False
    before, uniform = logits.copy(), rng.random(3)
    previous = np.array([[1, 1], [-1, 2], [3, 4]])[:, ::-1]
    ids = sample(logits, top_k=5, repetition_penalty=1.5, previous_ids=previous, uniform=uniform)
    np.testing.assert_array_equal(logits, before)
    again = sample(before, top_k=5, repetition_penalty=1.5, previous_ids=previous.copy(), uniform=uniform)
    np.testing.assert_array_equal(ids, again)


def test_repetition_penalty_comes_first_and_once_for_each_id():
    # 3.0 / 1.4 > 2.0 > 3.0 / 1.4 / 1.4; and a negative logit sinks
    logits = np.array([[3.0, 2.0, -1.0]], np.float32)
    previous = np.array([[0, 0, -1]])
    assert sample(logits, temperature=0, repetition_penalty=1.4, previous_ids=previous).tolist() == [0]
    assert sample(logits, temperature=0, repetition_penalty=1.6, previous_ids=previous).tolist() == [1]
    negative = np.array([[-1.0, -1.5]], np.float32)
    assert sample(negative, temperature=0, repetition_penalty=2.0, previous_ids=np.array([[0]])).tolist() == [1]


def test_a_vanishing_temperature_is_greedy():
    assert sample(LOGITS, temperature=1e-300, top_k=1, uniform=np.full(2, 0.9)).tolist() == [1, 0]


def test_minus_infinity_is_never_drawn(rng):
    logits = np.full((200, 9), -np.inf, np.float32)
    logits[:, 4] = -1e4
    assert set(sample(logits, generator=rng, temperature=100.0).tolist()) == {4}


def test_an_empty_batch_gives_no_ids(rng):
    assert sample(np.empty((0, 5), np.float32), generator=rng).shape == (0,)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"temperature": -0.1}, ValueError, "sample: temperature must be >= 0; got -0.1"),
        ({"temperature": float("nan")}, ValueError, "sample: temperature must be >= 0; got nan"),
        ({"temperature": "hot"}, TypeError, "sample: temperature must be a number; got str"),
        ({"top_k": -1}, ValueError, "sample: top_k must be >= 0; got -1"),
        ({"top_k": 2.5}, TypeError, "sample: top_k must be an integer; got float"),
        ({"top_p": 0}, ValueError, "sample: top_p must be > 0 and <= 1; got 0"),
        ({"top_p": 1.01}, ValueError, "sample: top_p must be > 0 and <= 1; got 1.01"),
        ({"min_p": -0.5}, ValueError, "sample: min_p must be >= 0 and <= 1; got -0.5"),
        ({"min_p": 2}, ValueError, "sample: min_p must be >= 0 and <= 1; got 2"),
        ({"repetition_penalty": 0}, ValueError, "sample: repetition_penalty must be > 0; got 0"),
        ({"uniform": None}, ValueError, "sample: give generator or uniform when temperature > 0; got neither"),
        (
            {"generator": np.random.default_rng(0)}, ValueError,
            "sample: give generator or uniform when temperature > 0; got both",
        ),
        (
            {"uniform": None, "generator": 3}, TypeError,
            "sample: generator must be a numpy.random.Generator; got int",
        ),
        ({"uniform": [0.5, 0.5]}, TypeError, "sample: uniform must be float64 [batch=2]; got list"),
        ({"uniform": np.zeros(3)}, ValueError, "sample: uniform must be float64 [batch=2]; got float64 (3,)"),
        ({"uniform": np.array([0.5, 1.0])}, ValueError, "sample: uniform must be within [0, 1); uniform[1] = 1.0"),
        (
            {"logits": LOGITS.astype(np.float16)}, TypeError,
            "sample: logits must be float32 [batch, vocab]; got float16 (2, 4)",
        ),
        ({"logits": LOGITS[0]}, ValueError, "sample: logits must be float32 [batch, vocab]; got float32 (4,)"),
        ({"logits": LOGITS[:, :0]}, ValueError, "sample: logits must have at least one column; got float32 (2, 0)"),
        (
            {"previous_ids": np.array([[0], [4]])}, IndexError,
            "sample: previous_ids[1, 0] = 4 is out of range; expected 0..3",
        ),
        (
            {"previous_ids": np.array([[0]])}, ValueError,
            "sample: previous_ids must be integer [batch=2, previous]; got int64 (1, 1)",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(changes, error, message):
    arguments = {"logits": LOGITS, "uniform": np.array([0.1, 0.2])} | changes
    logits = arguments.pop("logits")
    with pytest.raises(error) as caught:
        sample(logits, **arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_damaged_logit_is_named(value, temperature):
    logits = LOGITS.copy()
    logits[1, 2] = value
    with pytest.raises(ValueError, match=rf"hold neither NaN nor \+inf; logits\[1, 2\] = {value}"):
        sample(logits, temperature=temperature, uniform=np.zeros(2))


def test_a_row_without_a_choice_is_named():
    logits = LOGITS.copy()
    logits[1] = -np.inf
    with pytest.raises(ValueError, match="every row of logits must have a finite value; row 1 is all -inf"):
        sample(logits, temperature=0)


def test_a_penalty_that_overflows_says_so():
    with pytest.raises(ValueError, match="logits after repetition_penalty must hold neither NaN nor"):
        sample(LOGITS * 1e10, temperature=0, repetition_penalty=1e-35, previous_ids=np.array([[1], [0]]))
