"""Guesses from the text itself change how fast it is written, never what."""

import numpy as np
import pytest
from fake_decoder import FakeDecoder

from fastmixer.generate import Options, Scheduler
from fastmixer.generate.speculative import PromptLookup


def test_what_followed_the_last_time():
    lookup = PromptLookup([1, 2, 3, 4, 9, 2, 3, 5, 9, 8, 2, 3])
    assert lookup.guess(3) == [5, 9, 8] and lookup.guess(0) == []  # the later of two occurrences of 2 3
    lookup.add(4)
    assert lookup.guess(2) == [9, 2]
    lookup.add(7)
    assert lookup.guess(5) == []


def test_three_tokens_say_more_than_two():
    lookup = PromptLookup([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3])
    assert lookup.guess(1) == [4]


def test_a_guess_may_run_into_the_end():
    assert PromptLookup([7, 7, 7]).guess(4) == [7]
    assert PromptLookup([7]).guess(4) == PromptLookup([]).guess(4) == []


def looping(period):
    """A decoder that writes the same few tokens over and over, with a surprise now and then."""
    return lambda position: int(position % period) if position % 11 else int(position % 3)


def write(favourite, speculative, rng, windows=(0,), **options):
    scheduler = Scheduler(FakeDecoder(windows, 512, favourite=favourite), chunk=64)
    options = {"max_new_tokens": 60, "seed": 4, **options}
    prompts = [rng.integers(0, 6, count) for count in (1, 30, 100)]
    sequences = [
        scheduler.submit(prompt, Options(speculative=speculative, **options), index=index)
        for index, prompt in enumerate(prompts)
    ]
    while scheduler.step():
        pass
    assert scheduler.pool.held == 0 and all(one.error is None for one in sequences)
    return sequences, scheduler


@pytest.mark.parametrize("windows", [(0,), (0, 30)])
@pytest.mark.parametrize("favourite", [None, looping(5), looping(8)])
@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 0.7}, {"temperature": 0, "frequency_penalty": 1.5}]
)
@pytest.mark.parametrize("speculative", [1, 6])
def test_the_tokens_are_those_without_guesses(windows, favourite, options, speculative):
    plain, _ = write(favourite, 0, np.random.default_rng(1), windows, **options)
    guessed, _ = write(favourite, speculative, np.random.default_rng(1), windows, **options)
    assert [one.tokens for one in guessed] == [one.tokens for one in plain]
    assert [one.finish_reason for one in guessed] == [one.finish_reason for one in plain]
    assert all(one.accepted_tokens <= one.drafted_tokens for one in guessed)


def test_guesses_that_come_true_save_steps(rng):
    sequences, scheduler = write(lambda position: int(position % 5), 4, rng, temperature=0)
    assert all(one.accepted_tokens > 30 for one in sequences) and scheduler.steps < 40


@pytest.mark.parametrize("end", [{"stop": 4}, {"max_new_tokens": 7}])
def test_an_ending_among_guesses_is_an_ending(end, rng):
    sequences, _ = write(lambda position: int(position % 5), 8, rng, temperature=0, **end)
    for one in sequences:
        expected = [position % 5 for position in range(one.prompt_tokens - 1, one.prompt_tokens + 60)]
        expected = expected[: expected.index(4)] if "stop" in end else expected[:7]
        assert one.tokens == expected and one.finish_reason == ("stop" if "stop" in end else "length")


def test_guesses_stay_within_the_context():
    scheduler = Scheduler(FakeDecoder((0,), 64, favourite=lambda position: int(position % 3)))
    sequence = scheduler.submit(np.array([0, 1, 2] * 15), Options(max_new_tokens=500, temperature=0, speculative=30))
    scheduler.finish(sequence)
    assert sequence.finish_reason == "length" and len(sequence.tokens) == 64 - 45 + 1
