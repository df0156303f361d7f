"""Folders of tiny encoders, and of the real MiniLM."""

import shutil

import pytest
from cached_models import MINILM, NotAvailable, cached_folder
from tiny_encoders import TINY, write_modules, write_pooling, write_tokenizer

from fastmixer.kernels import select


@pytest.fixture(params=select.implementations("encoder"))
def implementation(request):
    """Every kernel that this machine can run."""
    with select.use_kernels(request.param):
        yield request.param


@pytest.fixture(params=["reference"])
def reference_kernels(request):
    """NumPy's kernels alone; of the others test_encoder.py tells."""
    with select.use_kernels(request.param):
        yield


@pytest.fixture
def tiny_folder(tmp_path):
    """make(name, mode="mean_tokens"): the folder of a tiny model with tokenizer and modules.json; mode None: without."""

    def make(name="bert", mode="mean_tokens"):
        folder = tmp_path / name
        shutil.copytree(TINY / name, folder)
        write_tokenizer(folder)
        if mode is not None:
            write_modules(folder, ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
            write_pooling(folder, mode)
        return folder

    return make


@pytest.fixture(scope="session")
def minilm_folder():
    """The folder of all-MiniLM-L6-v2."""
    try:
        return cached_folder(MINILM)
    except NotAvailable as error:
        pytest.skip(str(error))
