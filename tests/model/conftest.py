"""Small models of every kind, and batches of ids for them."""

import numpy as np
import pytest

from fastmixer.kernels.select import implementations
from fastmixer.model import ModelConfig

SMALL = {"vocab": 23, "context": 12, "dim": 8, "layers": 2, "heads": 2, "hidden": 12}
LLAMA = {
    "heads": 4, "kv_heads": 2, "norm": "rmsnorm", "positions": "rotary", "activation": "silu", "gated": True,
    "bias": False, "tied_head": False,
}  # fmt: skip
KINDS = {
    "gpt2": {},
    "llama": LLAMA,
    "untied": {"tied_head": False, "activation": "gelu"},
    "sinusoidal": {"positions": "sinusoidal", "bias": False, "activation": "relu"},
    "no-positions": {"positions": "none", "norm": "rmsnorm"},
    "window": {**LLAMA, "window": 3, "tied_head": True},
    "gated-biases": {"gated": True, "activation": "gelu", "kv_heads": 1},
    "dropout": {**LLAMA, "bias": True, "dropout": 0.3},
}  # fmt: skip


def small(kind="gpt2", **changes):
    """The ModelConfig of a kind, small enough for central differences."""
    return ModelConfig(**{**SMALL, **KINDS[kind], **changes})


def batch_for(config, batch=2, time=7, seed=3):
    """(ids, targets): int64 [batch, time]; one target counts for nothing."""
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, config.vocab, (2, batch, time))
    targets[0, 0] = -100
    return ids, targets


@pytest.fixture(params=list(KINDS))
def kind(request):
    """Each kind of model."""
    return request.param


@pytest.fixture(params=implementations("matmul"))
def implementation(request):
    """Each implementation that can run here."""
    return request.param


@pytest.fixture(name="small")
def small_fixture():
    """The function small."""
    return small


@pytest.fixture(name="batch_for")
def batch_for_fixture():
    """The function batch_for."""
    return batch_for
