"""Settings: each checked on its own, and held to each other; those of a run that goes on stay what they were."""

import math
import re

import pytest

from fastmixer.model import ModelConfig
from fastmixer.train.schedule import learning_rate_at
from fastmixer.train.settings import TrainSettings

CONFIG = ModelConfig.preset("tiny", context=32)


@pytest.mark.parametrize("peak", [1e-3, 5e-5, 0.3, 0.0])
def test_the_learning_rate_ends_at_a_tenth_of_its_peak(peak):
    settings = TrainSettings(steps=9, warmup=0, time=32, learning_rate=peak)
    settings.check_together(CONFIG)
    assert settings.min_learning_rate == settings.lowest_rate == peak / 10
    rates = [learning_rate_at(step, steps=9, peak=peak, minimum=settings.lowest_rate) for step in range(9)]
    assert rates[0] == pytest.approx(peak) and rates[-1] == pytest.approx(peak / 10) and rates == sorted(rates, reverse=True)


def test_a_minimum_above_the_peak_is_refused_but_of_a_run_that_goes_on():
    settings = TrainSettings(time=32, learning_rate=5e-5, min_learning_rate=1e-4)
    with pytest.raises(ValueError, match="^Trainer: min_learning_rate must be at most the learning rate's peak of 5e-05; got 0.0001$"):
        settings.check_together(CONFIG)
    settings.check_together(CONFIG, resumed=True)
    assert settings.lowest_rate == 1e-4
    TrainSettings(time=32, learning_rate=5e-5, min_learning_rate=1e-4, schedule="constant").check_together(CONFIG)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"clip_norm": math.inf}, "TrainSettings: clip_norm must be a finite number > 0, or None for no clipping; got inf"),
        ({"clip_norm": 0.0}, "TrainSettings: clip_norm must be > 0; got 0.0"),
        ({"min_learning_rate": -1.0}, "TrainSettings: min_learning_rate must be >= 0; got -1.0"),
        ({"sample_prompt": 3}, "TrainSettings: sample_prompt must be a string; got int"),
        ({"patience": 2, "evaluate_every": 0}, "Trainer: patience 2 counts evaluations and needs evaluate_every >= 1; got 0"),
        ({"time": 33}, "Trainer: time 33 is longer than the model's context of 32"),
    ],
)
def test_what_does_not_fit_is_named(settings, text):
    for resumed in (False, True):
        with pytest.raises((TypeError, ValueError), match=f"^{re.escape(text)}$"):
            TrainSettings(**{"time": 32, **settings}).check_together(CONFIG, resumed=resumed)


def test_none_switches_clipping_off():
    assert TrainSettings(clip_norm=None).clip_norm is None
