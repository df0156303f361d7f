"""Each step of sampling, alone and in order; frequencies of what is drawn; log-probabilities."""

import math

import numpy as np
import pytest

from fastmixer.generate.options import Options
from fastmixer.generate.sampler import Sampler, choose, token_logprob

NO_BIAS = (np.empty(0, np.int64), np.empty(0, np.float32))


def make(prompt=(), bias=NO_BIAS, key=(0, 0, 0), **options):
    return Sampler(Options(**options), key, bias, np.array(prompt, np.int64))


def row(*values):
    return np.array(values, np.float32)


def test_greedy_takes_the_first_of_the_largest():
    assert choose([make(temperature=0)] * 2, np.stack([row(1, 3, 3), row(-1, -2, -3)])) == [1, 0]


def test_without_penalties_logits_are_not_copied():
    logits = row(1, 2)
    assert make().scores(logits) is logits


def test_bias():
    sampler = make(bias=(np.array([0, 2]), row(1.5, -math.inf)), temperature=0)
    logits = row(1, 2, 9)
    assert sampler.scores(logits).tolist() == [2.5, 2, -math.inf] and logits.tolist() == [1, 2, 9]
    assert choose([sampler], logits[None]) == [0]


def test_repetition_counts_the_prompt_and_what_is_written_once():
    sampler = make([0, 1, 1], repetition_penalty=2)
    assert sampler.scores(row(4, -4, 4, 4)).tolist() == [2, -8, 4, 4]
    for token in (3, 3, 0):
        sampler.accept(token)
    assert sampler.scores(row(4, -4, 4, 4)).tolist() == [2, -8, 4, 2]


def test_presence_and_frequency_count_what_is_written_alone():
    sampler = make([0, 0], presence_penalty=0.5, frequency_penalty=0.25)
    assert sampler.scores(row(1, 1, 1)).tolist() == [1, 1, 1]
    for token in (1, 2, 2):
        sampler.accept(token)
    assert sampler.scores(row(1, 1, 1)).tolist() == [1, 0.25, 0]


def test_order_bias_repetition_presence():
    sampler = make([0], (np.array([0]), row(-3)), repetition_penalty=2, presence_penalty=1)
    sampler.accept(0)
    assert sampler.scores(row(1, 0)).tolist() == [-5, 0]  # (1 - 3) * 2 - 1


def test_penalties_hold_for_more_ids_than_there_was_room_for():
    sampler = make(frequency_penalty=1.0)
    for token in [*range(200), *range(100)]:
        sampler.accept(token)
    assert (sampler.scores(np.zeros(201, np.float32)) == -np.array([2] * 100 + [1] * 100 + [0])).all()


def draws(count, logits, **options):
    sampler = make(**options)
    found = []
    for _ in range(count):
        found += choose([sampler], logits[None])
        sampler.accept(found[-1])
    return np.bincount(found, minlength=len(logits)) / count


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, np.square([0.5, 0.3, 0.15, 0.05]) / 0.365),
        ({"temperature": 1, "top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"temperature": 1, "top_p": 0.9}, np.array([0.5, 0.3, 0.15, 0]) / 0.95),
        ({"temperature": 1, "min_p": 0.2}, np.array([0.5, 0.3, 0.15, 0]) / 0.95),
    ],
)
def test_frequencies(options, expected):
    found = draws(4000, np.log(row(0.5, 0.3, 0.15, 0.05)), **options)
    # four standard deviations of a share of 4000 draws
    assert (np.abs(found - expected) <= 4 * np.sqrt(0.25 / 4000)).all() and (found[np.equal(expected, 0)] == 0).all()


def test_the_random_number_is_the_same_until_it_was_used():
    sampler = make(key=(1, 2, 3))
    first = sampler.uniform
    assert sampler.uniform == first
    sampler.accept(0)
    assert sampler.uniform != first
    assert make(key=(1, 2, 3)).uniform == first != make(key=(1, 2, 4)).uniform


def test_rows_of_different_samplers_together_are_those_alone(rng):
    logits = rng.standard_normal((9, 50), dtype=np.float32)

    def samplers():
        kinds = [{"temperature": 0}, {"top_k": 5}, {"temperature": 2.0}, {"top_p": 0.5, "presence_penalty": 1.0}]
        made = [make(key=(3, index), **kinds[index % 4]) for index in range(9)]
        for sampler in made:
            sampler.accept(7)
        return made

    together = choose(samplers(), logits)
    assert together == [choose([sampler], logits[index : index + 1])[0] for index, sampler in enumerate(samplers())]
    assert len(set(together)) > 3


@pytest.mark.parametrize(("temperature", "bad"), [(0, math.nan), (0, math.inf), (1, math.nan), (0, -math.inf)])
def test_logits_that_are_no_numbers_are_errors(temperature, bad):
    logits = np.full((1, 3), -math.inf, np.float32)
    logits[0, 1] = bad
    with pytest.raises(ValueError, match=r"^sample: (logits must hold neither|every row of logits must have)"):
        choose([make(temperature=temperature)], logits)


def test_log_probabilities(rng):
    logits = rng.standard_normal(300, dtype=np.float32) * 3
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    found = token_logprob(logits, 17, 5)
    best = np.argsort(-logits)[:5]
    assert found.token == 17 and abs(found.logprob - exact[17]) < 1e-5
    assert [token for token, _ in found.top] == best.tolist()
    np.testing.assert_allclose([value for _, value in found.top], exact[best], atol=1e-5)
    assert token_logprob(logits, 17, 0).top == ()


def test_among_equals_the_lower_ids_are_named():
    assert [token for token, _ in token_logprob(row(1, 2, 2, 2, 0), 0, 2).top] == [1, 2]
    assert len(token_logprob(row(1, 2), 0, 20).top) == 2
