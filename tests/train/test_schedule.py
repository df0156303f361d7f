"""Learning rates at the corners of every schedule."""

import itertools
import math

import pytest

from fastmixer.train.schedule import SCHEDULES, learning_rate_at

RATES = {"steps": 101, "peak": 1.0, "minimum": 0.1}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_rises_in_even_steps_to_the_peak(schedule):
    rates = [learning_rate_at(step, **RATES, warmup=4, schedule=schedule) for step in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)]
)
def test_from_the_peak_to_the_minimum(schedule, middle, last):
    rate = [learning_rate_at(step, **RATES, schedule=schedule) for step in range(101)]
    assert (rate[0], rate[50], rate[100]) == pytest.approx((1.0, middle, last))
    assert all(after <= before for before, after in itertools.pairwise(rate))


def test_cosine_is_a_cosine():
    assert learning_rate_at(25, **RATES) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)]
)
def test_after_a_warmup_the_rest_of_the_run_goes_from_the_peak_to_the_minimum(schedule, middle, last):
    rate = [learning_rate_at(step, **RATES, warmup=20, schedule=schedule) for step in range(101)]
    assert [rate[step] for step in (0, 19, 20, 60, 100)] == pytest.approx([0.05, 1.0, 1.0, middle, last])


def test_past_the_end_stays_at_the_minimum_and_a_warmup_may_fill_the_run():
    assert learning_rate_at(500, **RATES) == pytest.approx(0.1)
    assert learning_rate_at(9, steps=10, peak=1.0, warmup=10) == 1.0


def test_unknown_schedule():
    with pytest.raises(ValueError, match=r"^schedule must be one of cosine, linear, constant; got 'step'$"):
        learning_rate_at(0, steps=1, peak=1.0, schedule="step")
