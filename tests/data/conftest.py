import pytest

import fastmixer as fm
from fastmixer.data import write_dataset
from fastmixer.text.assets import alice_path, alice_text


@pytest.fixture(scope="session")
def tokenizer():
    return fm.train_tokenizer(alice_text(), "bpe", 512)


@pytest.fixture(scope="session")
def dataset(tokenizer, tmp_path_factory):
    return write_dataset(alice_path(), tokenizer, tmp_path_factory.mktemp("data") / "alice")
