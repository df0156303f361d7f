"""A run small enough to repeat many times: a one-layer model of characters on a page of text."""

import pytest

import fastmixer as fm
from fastmixer.data import write_dataset
from fastmixer.model import ModelConfig
from fastmixer.text.assets import alice_text

SETTINGS = {
    "steps": 6, "batch": 2, "time": 8, "warmup": 2, "evaluate_every": 3, "evaluate_batches": 2, "save_every": 2, "seed": 5,
}  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer():
    return fm.train_tokenizer(alice_text()[:3000], "characters")


@pytest.fixture(scope="session")
def dataset(tokenizer, tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "page.txt"
    text.write_text(alice_text()[:3000], encoding="utf-8")
    return write_dataset(text, tokenizer, text.parent / "data")


@pytest.fixture
def new_model(tokenizer):
    """new_model(**changes) -> the same small Transformer every time."""

    def make(**changes):
        config = {"vocab": tokenizer.vocab_size, "context": 8, "dim": 16, "layers": 2, "heads": 2, "hidden": 32, **changes}
        return fm.Transformer(ModelConfig(**config), seed=1, tokenizer=tokenizer)

    return make


@pytest.fixture
def new_trainer(new_model, tokenizer, dataset):
    """new_trainer(folder, model=None, **settings) -> a Trainer of the small run."""

    def make(folder, model=None, **settings):
        options = {**SETTINGS, "progress": False, **settings}
        return fm.Trainer(model or new_model(), tokenizer, dataset, folder=folder, **options)

    return make
