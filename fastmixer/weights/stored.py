"""A weight as it lies in its file, and the list of weights that a configuration needs. Knows no file format."""

from dataclasses import dataclass

import numpy as np

from fastmixer.model.config import ModelConfig
from fastmixer.weights.quantized import BlockType, dequantize


@dataclass(frozen=True)
class StoredTensor:
    """A matrix or vector of a model, in the format of its file.

    raw: uint8 [rows, bytes a row], blocks of `type` one after another, a view of the mapped file where possible.
    shape: (rows, columns), or (n,) for a vector, which is one row.
    """

    type: BlockType
    raw: np.ndarray
    shape: tuple[int, ...]

    def values(self) -> np.ndarray:
        """float32 [shape]: the numbers, dequantized."""
        return dequantize(self.raw, self.type).reshape(self.shape)

    def take(self, rows: slice | np.ndarray) -> "StoredTensor":
        """These rows of a matrix, a view for a slice; of a vector, these numbers (plain ones: blocks are not cut)."""
        if len(self.shape) == 1:
            if self.type.block > 1:
                raise ValueError(f"take: a vector of {self.type.name} cannot be cut within its blocks")
            raw = self.raw.reshape(-1, self.type.bytes)[rows]
            return StoredTensor(self.type, raw.reshape(1, -1), (len(raw),))
        raw = self.raw[rows]
        return StoredTensor(self.type, raw, (len(raw), *self.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.raw.nbytes


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every weight that inference needs, by name, in the order of the data's flow.

    Matrices are [out, in]; q, k and v stay apart, gate and up too.
    """
    dim, hidden = config.dim, config.hidden
    q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (config.vocab, dim)}
    if config.positions == "learned":
        shapes["positions.weight"] = (config.context, dim)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = (dim,)
        if config.norm == "layernorm" and config.bias:
            shapes[f"{name}.bias"] = (dim,)

    def linear(name: str, outputs: int, inputs: int, bias: bool = config.bias) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    for layer in range(config.layers):
        prefix = f"layers.{layer}"
        norm(f"{prefix}.attention_norm")
        for part, width in (("q", q_width), ("k", kv_width), ("v", kv_width)):
            linear(f"{prefix}.attention.{part}", width, dim, config.has_qkv_bias)
        if config.qk_norm:
            shapes[f"{prefix}.attention.q_norm.weight"] = shapes[f"{prefix}.attention.k_norm.weight"] = (
                config.head_dim,
            )
        linear(f"{prefix}.attention.output", dim, q_width)
        if config.post_norms:
            norm(f"{prefix}.attention_post_norm")
        norm(f"{prefix}.feedforward_norm")
        if config.gated:
            linear(f"{prefix}.feedforward.gate", hidden, dim)
        linear(f"{prefix}.feedforward.up", hidden, dim)
        linear(f"{prefix}.feedforward.down", dim, hidden)
        if config.post_norms:
            norm(f"{prefix}.feedforward_post_norm")
    norm("final_norm")
    if not config.tied_head:
        shapes["head.weight"] = (config.vocab, dim)
    return shapes
