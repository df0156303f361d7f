"""An opened encoder as one that answers: its weights packed for this processor, all layers as one kernel call.

Many sequences go through together, each seeing itself only. Knows nothing of tokenizers, or of pooling.
"""

from typing import TYPE_CHECKING

import numpy as np

from fastmixer.kernels.activations import ACTIVATIONS
from fastmixer.kernels.activations_reference import activate
from fastmixer.kernels.encoder.spec import EncoderLayerSpec, EncoderSpec, Linear, Norm
from fastmixer.kernels.packed import FOR_MANY_ROWS, KINDS, PackedWeight
from fastmixer.kernels.select import implementation, kernel_module, kernels
from fastmixer.model.decoder import kind_of, packing_bar, spec_bytes
from fastmixer.model.encoder_config import EncoderConfig
from fastmixer.model.relative import relative_table
from fastmixer.ops.checks import check_choice, check_id_range
from fastmixer.ops.norm import layernorm
from fastmixer.ops.positions import rotary_tables

if TYPE_CHECKING:
    from fastmixer.weights.encoder_folder import EncoderSource


class Encoder:
    """The model of an EncoderSource, ready to run.

    weights: how matrices are kept: "float32", "bfloat16", "int8" or "int4" (the embedding's then in int8); which is the
    fastest that will do takes text to find out (embed/auto_weights.py). kinds: how each matrix is kept, by name. A
    classification head and what has few rows (positions, token types) stay float32. progress: a bar while weights are
    packed, where that takes over a second.
    """

    def __init__(self, source: "EncoderSource", weights: str = "float32", *, progress: bool = True):
        check_choice("Encoder", "weights", weights, KINDS)
        self.config: EncoderConfig = source.config
        self.weights = weights
        self.kinds: dict[str, str] = {}
        self._source: EncoderSource | None = source
        module = kernels("encoder")
        self._packing = kernel_module("packed", implementation("encoder"))
        with packing_bar(source.tensors.values(), progress) as self._progress:
            self.spec = self._make_spec()
        del self._progress
        self._head = self._read_head()
        self._source = None  # what was packed needs the file no more
        self._encoder = module.Encoder(self.spec)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as they are kept."""
        return spec_bytes(self.spec) + sum(array.nbytes for array in self._head.values())

    def forward(self, ids: np.ndarray, starts: np.ndarray, token_types: np.ndarray | None = None) -> np.ndarray:
        """The hidden state of every token: float32 [tokens, dim].

        ids: int64 [tokens], of sequence s those from starts[s] to starts[s + 1] (starts: int64 [sequences + 1]); each
        sequence has at most config.context tokens. token_types: int64 [tokens] (None: all 0). Raises ValueError or
        IndexError.
        """
        ids, starts = _integers("ids", ids), _integers("starts", starts)
        check_id_range("forward", "ids", ids, self.config.vocab)
        lengths = starts[1:] - starts[:-1]
        if len(starts) == 0 or starts[0] != 0 or starts[-1] != len(ids) or (len(lengths) and lengths.min() < 0):
            raise ValueError(f"forward: starts must rise from 0 to {len(ids)} tokens; got {starts}")
        if len(lengths) and lengths.max() > self.config.context:
            raise ValueError(
                f"forward: a sequence must have at most {self.config.context} tokens, the model's context; "
                f"got {lengths.max()}"
            )
        if token_types is not None:
            token_types = _integers("token_types", token_types)
            if len(token_types) != len(ids):
                raise ValueError(
                    f"forward: token_types must be one of each of {len(ids)} tokens; got {len(token_types)}"
                )
            check_id_range("forward", "token_types", token_types, max(1, self.config.token_types))
        hidden = np.empty((len(ids), self.config.dim), np.float32)
        self._encoder.forward(ids, starts, token_types if self.config.token_types else None, hidden)
        return hidden

    def classify(self, pooled: np.ndarray) -> np.ndarray:
        """The head's logits: float32 [sequences, classes] of pooled: float32 [sequences, dim], pooled as config.head.pooling
        says. Raises ValueError for an encoder without a head."""
        head = self.config.head
        if head is None:
            raise ValueError("classify: this encoder has no classification head")
        tensors = self._head
        x = dense(pooled, tensors["dense.weight"], tensors.get("dense.bias"), head.activation)
        if head.has_norm:
            x = layernorm(x, tensors["norm.weight"], tensors.get("norm.bias"), epsilon=self.config.norm_epsilon)
        return dense(x, tensors["output.weight"], tensors["output.bias"], "none")

    # ---- from tensors to the spec ----

    def _make_spec(self) -> EncoderSpec:
        c = self.config
        rotations = {False: self._rotation(c.rotary_base), True: self._rotation(c.local_rotary_base)}
        local = c.local_layers or (False,) * c.layers
        return EncoderSpec(
            dim=c.dim, heads=c.heads, head_dim=c.head_dim, hidden=c.hidden, vocab=c.vocab, placement=c.placement,
            activation=c.activation, attention_scale=c.head_dim**-0.5,
            embedding=self._matrix("embedding.weight", is_table=True),
            positions=self._array("positions.weight") if c.learned_positions else None,
            token_types=self._array("token_types.weight") if c.token_types else None,
            embedding_norm=self._norm("embedding_norm"),
            relative=relative_table(self._array("relative.weight")) if c.relative_buckets else None,
            layers=tuple(self._layer(index, is_local, rotations[is_local]) for index, is_local in enumerate(local)),
            final_norm=self._norm("final_norm") if c.placement == "pre" else None,
        )  # fmt: skip

    def _rotation(self, base: float | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        return (None, None) if base is None else rotary_tables(self.config.context, self.config.head_dim, base)

    def _layer(
        self, index: int, is_local: bool, rotation: tuple[np.ndarray | None, np.ndarray | None]
    ) -> EncoderLayerSpec:
        c, prefix = self.config, f"layers.{index}"
        has_norm = index > 0 or c.placement == "post"
        return EncoderLayerSpec(
            attention_norm=self._norm(f"{prefix}.attention_norm") if has_norm else None,
            q=self._linear(f"{prefix}.attention.q", c.attention_bias),
            k=self._linear(f"{prefix}.attention.k", c.attention_bias),
            v=self._linear(f"{prefix}.attention.v", c.attention_bias),
            output=self._linear(f"{prefix}.attention.output", c.attention_bias),
            feedforward_norm=self._norm(f"{prefix}.feedforward_norm"),
            gate=self._linear(f"{prefix}.feedforward.gate", c.feedforward_bias) if c.gated else None,
            up=self._linear(f"{prefix}.feedforward.up", c.feedforward_bias),
            down=self._linear(f"{prefix}.feedforward.down", c.feedforward_bias),
            window=c.window or 0 if is_local else 0, cos=rotation[0], sin=rotation[1],
        )  # fmt: skip

    def _read_head(self) -> dict[str, np.ndarray]:
        """The head's tensors, by their names after "head."."""
        assert self._source is not None
        names = [name for name in self._source.tensors if name.startswith("head.")]
        return {name.removeprefix("head."): self._array(name) for name in names}

    def _array(self, name: str) -> np.ndarray:
        assert self._source is not None
        return np.ascontiguousarray(self._source.tensors[name].values())

    def _norm(self, name: str) -> Norm:
        bias = self._array(f"{name}.bias") if self.config.norm_bias else None
        return Norm("layernorm", self._array(f"{name}.weight"), bias, self.config.norm_epsilon)

    def _linear(self, name: str, has_bias: bool) -> Linear:
        return Linear(self._matrix(f"{name}.weight"), self._array(f"{name}.bias") if has_bias else None)

    def _matrix(self, name: str, is_table: bool = False) -> PackedWeight:
        assert self._source is not None
        tensor = self._source.tensors[name]
        kind = kind_of(tensor.type.name, self.weights, is_table)
        kind = self.kinds[name] = kind if is_table else FOR_MANY_ROWS.get(kind, kind)
        packed = self._packing.pack_weight(np.ascontiguousarray(tensor.raw), tensor.type.name, *tensor.shape, kind)
        self._progress.update(tensor.nbytes)
        return packed


def dense(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, activation: str) -> np.ndarray:
    """act(x weight^T + bias): float32 [sequences, outputs] of x: float32 [sequences, inputs], weight: [outputs, inputs].
    activation: one of kernels/activations.py, or "tanh". Few rows each: NumPy's product serves."""
    out = x @ weight.T
    if bias is not None:
        out += bias
    return bend(out, activation)


def bend(x: np.ndarray, activation: str) -> np.ndarray:
    """act(x): float32 [...], of the same activations; x itself for "none"."""
    return np.tanh(x) if activation == "tanh" else activate(x, ACTIVATIONS[activation])


def _integers(name: str, array: np.ndarray) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != np.int64:
        got = f"{array.dtype.name} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"forward: {name} must be int64 with one axis; got {got}")
    return np.ascontiguousarray(array)
