"""Models over the decoder of fake_decoder.py, and no page that is not given back."""

import pytest
from fake_decoder import FakeDecoder
from random_models import tiny_tokenizer

from fastmixer.generate import LanguageModel

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def make_model():
    """make_model(windows, ..., cache_tokens=...): a LanguageModel over a FakeDecoder; in the end nothing is held."""
    made = []

    def make(windows=(0,), *, cache_tokens=None, tokenizer=TOKENIZER, chunk=None, generation=None, **changes):
        model = LanguageModel(FakeDecoder(windows, **changes), tokenizer, "fake", generation, cache_tokens=cache_tokens)
        if chunk:
            model.scheduler.chunk = chunk
        made.append(model)
        return model

    yield make
    for model in made:
        while model.scheduler.step():
            pass
        assert model.scheduler.active == 0 and model.scheduler.pool.held == 0


@pytest.fixture
def model(make_model):
    return make_model()
