"""What a Decoder would make of an opened model, and how many bytes it would take, without reading its weights."""

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from fastmixer.kernels.packed import KINDS
from fastmixer.kernels.select import implementation, kernel_module
from fastmixer.model.config import ModelConfig
from fastmixer.model.decoder import TABLES, WEIGHTS, cache_groups, kind_of, page_bytes
from fastmixer.ops.checks import check_choice

if TYPE_CHECKING:
    from fastmixer.weights.source import ModelSource
    from fastmixer.weights.stored import StoredTensor

SAMPLE_ROWS = 64  # that are packed, to see what they take: every layout's groups of rows divide it


@dataclass(frozen=True)
class Plan:
    """kinds: how each matrix would be kept, by name; weight_bytes: of all weights and tables of positions; windows: as
    Decoder has them; layers_per_group: the layers of each."""

    config: ModelConfig
    kinds: dict[str, str]
    weight_bytes: int
    windows: tuple[int, ...]
    layers_per_group: tuple[int, ...]

    def page_bytes(self, group: int, dtype: str) -> int:
        """Bytes of one page of a group, as Decoder.page_bytes."""
        return page_bytes(self.config, self.layers_per_group[group], dtype)

    @property
    def matrices(self) -> dict[str, int]:
        """How many matrices would be kept in each kind that there is."""
        counts = {kind: list(self.kinds.values()).count(kind) for kind in KINDS}
        return {kind: count for kind, count in counts.items() if count}


def plan(source: "ModelSource", weights: str = "auto") -> Plan:
    """What Decoder(source, weights) would do."""
    check_choice("plan", "weights", weights, WEIGHTS)
    config = source.config
    kinds: dict[str, str] = {}
    total = 0
    sample_bytes: dict[tuple[str, int, str], int] = {}
    for name, tensor in source.tensors.items():
        if len(tensor.shape) == 1 or name == "positions.weight":
            total += 4 * prod(tensor.shape)
            continue
        kind = kinds[name] = kind_of(tensor.type.name, weights, name in TABLES)
        key = (tensor.type.name, tensor.shape[1], kind)
        samples, rest = divmod(tensor.shape[0], SAMPLE_ROWS)
        if samples and key not in sample_bytes:
            sample_bytes[key] = _packed_bytes(tensor.take(slice(SAMPLE_ROWS)), kind)
        total += samples * sample_bytes[key] if samples else 0
        total += _packed_bytes(tensor.take(slice(rest)), kind) if rest else 0
    windows, layers = cache_groups(config)
    if config.positions == "rotary":
        tables = 2 if config.local_rotary_base is not None and any(windows) else 1
        total += tables * 4 * config.context * (config.rotary_dim or config.head_dim)
    elif config.positions == "sinusoidal":
        total += 4 * config.context * config.dim
    return Plan(config, kinds, total, windows, layers)


def _packed_bytes(tensor: "StoredTensor", kind: str) -> int:
    packing = kernel_module("packed", implementation("decoder"))
    return packing.pack_weight(tensor.raw.copy(), tensor.type.name, *tensor.shape, kind).nbytes
