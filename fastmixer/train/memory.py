"""How much memory this process has used at most, and how much training a model needs, held to what there is.

Knows shapes and sizes; nothing of what is computed.
"""

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from fastmixer.memory import available_memory
from fastmixer.model.config import ModelConfig, parameter_shapes
from fastmixer.ops.bfloat16 import rounded_bytes
from fastmixer.ops.cross_entropy import chunk_rows

STATUS = Path("/proc/self/status")
FLOAT = 4  # bytes
OPTIMIZER_COPIES = 4  # weights, gradients, AdamW's two moments


def peak_memory() -> int:
    """The most memory that this process has had resident, in bytes; 0 where the system does not tell."""
    if STATUS.exists():  # its own peak: ru_maxrss begins at that of the process which started this one
        found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training takes at least: of parameters (weights, copies in bfloat16, gradients, moments), of the arrays
    of a step, and of those the part that each sequence of the batch takes."""

    parameters: int
    activations: int
    per_sequence: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.activations


def training_memory(
    config: ModelConfig,
    batch: int,
    time: int,
    *,
    precision: str = "float32",
    checkpoint_activations: bool = False,
) -> TrainingMemory:
    """What training a model takes at least: the shapes of fastmixer/model/workspace.py and of the flat buffers."""
    shapes = list(parameter_shapes(config))
    parameters = FLOAT * OPTIMIZER_COPIES * sum(math.prod(shape) for _, shape in shapes)
    if precision == "bfloat16":
        head = "embedding.weight" if config.tied_head else "head.weight"
        rounded = (shape for name, shape in shapes if name.startswith("layers.") or name == head)
        parameters += sum(rounded_bytes(*shape) for shape in rounded if len(shape) == 2)
    inner = (3 if config.gated else 2) * config.hidden + config.qkv_width
    layer = inner + 5 * config.dim + config.heads
    layers = layer + (config.layers - 1) * config.dim if checkpoint_activations else config.layers * layer
    gradients = inner + (4 if config.dropout > 0 else 3) * config.dim
    per_sequence = FLOAT * time * (layers + gradients + 2 * config.dim)
    logits = FLOAT * chunk_rows(batch * time) * config.vocab
    return TrainingMemory(parameters, batch * per_sequence + logits, per_sequence)


def check_training_memory(
    config: ModelConfig,
    batch: int,
    time: int,
    *,
    precision: str = "float32",
    checkpoint_activations: bool = False,
    held: int = 0,
) -> None:
    """Raise MemoryError, with the numbers and what would fit, if training needs more than there is.

    held: bytes of it that this process holds already.
    """
    available = available_memory()
    need = training_memory(config, batch, time, precision=precision, checkpoint_activations=checkpoint_activations)
    if available is None or need.total <= available + held:
        return
    parts = (
        f"training on batches of {batch} x {time} tokens needs at least {_amount(need.total)}: "
        f"{_amount(need.parameters)} for weights, gradients and AdamW's moments, {_amount(need.activations)} for "
        f"activations; {_amount(available + held)} are available. "
    )
    left = available + held - need.parameters
    if left <= 0:
        raise MemoryError(parts + "Choose a smaller preset, context or vocabulary")
    ways = []
    for checkpointed in (checkpoint_activations, True):
        of = training_memory(config, batch, time, precision=precision, checkpoint_activations=checkpointed)
        fits = min((left - (of.activations - batch * of.per_sequence)) // of.per_sequence, batch)
        if fits >= 1:
            ways.append(
                f"batch {fits}{'' if checkpointed == checkpoint_activations else ' with checkpointed activations'}"
            )
    ways = list(dict.fromkeys(ways))
    if not ways:
        raise MemoryError(parts + "Choose a shorter time or a smaller preset")
    raise MemoryError(parts + f"What fits: {', or '.join(ways)}; accumulate adds the gradients of several up")


def _amount(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
