"""The peak of resident memory sees what was touched, from /proc and where there is none."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.model.workspace import Workspace
from fastmixer.train import memory
from fastmixer.train.memory import check_training_memory, training_memory

MEGABYTE = 2**20
RISE = """
import numpy as np
from fastmixer.train.memory import peak_memory
before = peak_memory()
np.ones(64 * 2**20, np.uint8)  # let go at once: the peak stays
print(peak_memory() - before)
"""


def test_it_sees_what_was_touched():
    found = subprocess.run([sys.executable, "-c", RISE], capture_output=True, text=True, check=True)
    assert 60 * MEGABYTE < int(found.stdout) < 80 * MEGABYTE


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_without_proc_the_system_call_is_asked(monkeypatch, platform):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(memory, "STATUS", Path("/nowhere/status"))
    monkeypatch.setattr(memory.sys, "platform", platform)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert memory.peak_memory() == peak * {"linux": 1024, "darwin": 1}[platform]


def test_proc_and_the_system_call_agree_on_the_unit(monkeypatch):
    array = np.ones(32 * MEGABYTE, np.uint8)
    told = memory.peak_memory()
    assert array.nbytes < told < 2**40
    monkeypatch.setattr(memory, "STATUS", Path("/nowhere/status"))
    assert memory.peak_memory() >= 0.9 * told  # the system call may begin at the parent's peak


LLAMA = {
    "kv_heads": 2,
    "norm": "rmsnorm",
    "positions": "rotary",
    "activation": "silu",
    "gated": True,
    "tied_head": False,
}


def _arrays(value, found):
    """All arrays that a workspace holds, each place once."""
    if isinstance(value, np.ndarray):
        found[value.ctypes.data] = value.nbytes
    elif isinstance(value, (list, tuple)):
        for one in value:
            _arrays(one, found)
    elif hasattr(value, "__dict__"):
        for one in vars(value).values():
            _arrays(one, found)
    return sum(found.values())


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.1}, LLAMA], ids=["gpt2", "dropout", "llama"])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_need_is_what_a_step_allocates(changes, checkpointed, precision):
    config = fm.ModelConfig(**{"vocab": 512, "context": 32, "dim": 64, "layers": 3, "heads": 4, **changes})
    model = fm.Transformer(
        config, seed=0, precision=precision, force_precision=True, checkpoint_activations=checkpointed
    )
    optimizer = fm.AdamW(model.parameters)
    ids = np.zeros((4, 32), np.int64)
    model.forward_backward(ids, ids, dropout_seed=1)
    need = training_memory(config, 4, 32, precision=precision, checkpoint_activations=checkpointed)
    space = model._workspace
    assert isinstance(space, Workspace)
    del space.config, space._arena
    activations = _arrays(space, {})
    assert need.activations == pytest.approx(activations, rel=0.02) and need.activations <= activations
    rounded = [model.parameters.rounded(name) for name in model.parameters]
    copies = sum(one.over_rows.nbytes + one.over_columns.nbytes for one in rounded if one is not None)
    held = copies + sum(
        a.nbytes for a in (model.parameters.data, model.parameters.gradients_data, optimizer.m, optimizer.v)
    )
    assert need.parameters == pytest.approx(held, rel=0.02) and need.parameters <= held


def test_too_large_a_batch_is_told_what_fits(monkeypatch):
    config = fm.ModelConfig.preset("gpt2")
    available = 8_000_000_000
    monkeypatch.setattr(memory, "available_memory", lambda: available)
    check_training_memory(config, 4, 1024)
    with pytest.raises(MemoryError) as caught:
        check_training_memory(config, 64, 1024)
    found = re.fullmatch(
        r"training on batches of 64 x 1024 tokens needs at least 43\.9 GB: 2\.0 GB for weights, gradients and AdamW's moments, "
        r"\d+\.\d GB for activations; 8\.0 GB are available\. What fits: batch (\d+), or batch (\d+) with checkpointed "
        r"activations; accumulate adds the gradients of several up",
        str(caught.value),
    )
    assert found, caught.value
    for batch, checkpointed in ((int(found[1]), False), (int(found[2]), True)):
        check_training_memory(config, batch, 1024, checkpoint_activations=checkpointed)
        with pytest.raises(MemoryError):
            check_training_memory(config, batch + 1, 1024, checkpoint_activations=checkpointed)
    assert int(found[2]) > int(found[1]) > 1
    with pytest.raises(MemoryError, match=r": 15\.1 MB for weights, gradients and AdamW's moments, "):
        check_training_memory(fm.ModelConfig.preset("tiny"), 10**6, 128)
    available = 1_500_000_000
    with pytest.raises(MemoryError, match="are available. Choose a smaller preset, context or vocabulary$"):
        check_training_memory(config, 1, 8)
    check_training_memory(config, 1, 8, held=600_000_000)
    available = 2_100_000_000
    with pytest.raises(MemoryError, match="are available. Choose a shorter time or a smaller preset$"):
        check_training_memory(config, 1, 1024)
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    check_training_memory(config, 10**9, 1024)
