"""An encoder that learns: packed sequences -> rows + positions + types -> layers -> hidden states, and back.

Over fastmixer.ops, as Transformer is; each sequence sees itself only and none is padded. backward is forward read from the
bottom up. Knows nothing of pooling, losses, tokenizers or optimizers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmixer.kernels.memory import Arena, aligned_empty
from fastmixer.model.block import Rotary
from fastmixer.model.encoder_block import LAYERS, EncoderActivations, EncoderGradients, EncoderLayer, Packing, norm_of
from fastmixer.model.encoder_config import EncoderConfig, encoder_shapes
from fastmixer.model.parameters import Parameters
from fastmixer.model.precision import usable_precision
from fastmixer.model.relative import relative_table, relative_table_backward
from fastmixer.ops.checks import check_number
from fastmixer.ops.dropout import check_seed, dropout, fold_seed
from fastmixer.ops.embedding import embedding, embedding_backward
from fastmixer.ops.norm import layernorm
from fastmixer.ops.positions import add_positions, rotary_tables

if TYPE_CHECKING:
    from fastmixer.weights.stored import StoredTensor

QKV = ("attention.q", "attention.k", "attention.v")
EMBEDDINGS = ("embedding.", "positions.", "token_types.", "embedding_norm.")  # what freeze_embeddings keeps as it is
EMBEDDING_DROPOUT = 0  # the number of the embeddings' dropout among a step's seeds; layers count from 1
GROWTH = 256  # tokens: the arrays of a step are made in steps of so many


@dataclass
class _Step:
    """What forward leaves for backward besides the layers'."""

    ids: np.ndarray
    token_types: np.ndarray
    packing: Packing
    embedded: np.ndarray  # [tokens, dim], before the norm
    norm_saved: Any
    stream: np.ndarray  # [tokens, dim], what the first layer reads
    layers: list[EncoderActivations]
    final_norm_saved: Any = None


class TrainableEncoder:
    """The encoder of these tensors (names and shapes: encoder_config.encoder_shapes), as one whose weights can learn.

    parameters: all weights that learn and their gradients in two flat buffers; linear weights are [in, out] there, q, k and
    v side by side. freeze_embeddings: rows, positions, types and their norm stay as they are and are no parameters.
    further: first values of parameters that the caller applies behind the encoder, by their names. dtype "float64" runs on
    the NumPy reference alone, for gradient checks. precision "bfloat16": products are in bfloat16, added up in float32;
    where no instructions for it run, it warns and takes float32, unless force_precision is set.
    Sources: Devlin et al. 2018 (arXiv 1810.04805); Song et al. 2020 (2004.09297); Warner et al. 2024 (2412.13663).
    """

    def __init__(
        self,
        config: EncoderConfig,
        tensors: "Mapping[str, StoredTensor]",
        *,
        dtype: str = "float32",
        precision: str = "float32",
        force_precision: bool = False,
        freeze_embeddings: bool = False,
        further: Mapping[str, np.ndarray] | None = None,
    ):
        self.config, self.dtype, self.freeze_embeddings = config, np.dtype(dtype), freeze_embeddings
        self.precision = usable_precision("TrainableEncoder", precision, force_precision)
        shapes = _trained_shapes(config)
        frozen = {name for name in shapes if freeze_embeddings and name.startswith(EMBEDDINGS)}
        trained = [(name, shape) for name, shape in shapes.items() if name not in frozen]
        further = {} if further is None else further
        self.parameters = Parameters([*trained, *((n, first.shape) for n, first in further.items())], self.dtype)
        self._frozen = {name: np.empty(shapes[name], self.dtype) for name in shapes if name in frozen}
        for name in shapes:
            self._weight(name)[...] = _read(tensors, name)
        for name, first in further.items():
            self.parameters[name][...] = first
        if self.precision == "bfloat16":
            self.parameters.keep_rounded(
                [name for name in self.parameters if name.startswith("layers.") and self.parameters.decayed(name)]
            )
        self._connect()

    def _connect(self) -> None:
        """The parts, which look into parameters; no room for a step yet."""
        self._layers = self._make_layers()
        self._embedding_norm = None if self._frozen else norm_of(self.config, self.parameters, "embedding_norm")
        self._final_norm = norm_of(self.config, self.parameters, "final_norm") if self.config.placement == "pre" else None
        self._space: list[EncoderActivations] = []
        self._gradients: EncoderGradients | None = None
        self._arena = Arena()
        self._embedded = np.empty((3, 0, self.config.dim), self.dtype)
        self._step: _Step | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which connect their parts with their own parameters."""
        kept = ("config", "dtype", "freeze_embeddings", "precision", "parameters", "_frozen")
        return {name: vars(self)[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._connect()

    def forward(
        self,
        ids: np.ndarray,
        starts: np.ndarray,
        token_types: np.ndarray | None = None,
        *,
        dropout_rate: float = 0.0,
        dropout_seed: int = 0,
    ) -> np.ndarray:
        """The hidden state of every token: float [tokens, dim], which lasts until the next call.

        ids: int64 [tokens], of sequence s those from starts[s] to starts[s + 1] (starts: int64 [sequences + 1]);
        token_types: int64 [tokens] (None: all 0). dropout_rate: of activations and attention's weights, drawn by
        dropout_seed. Raises TypeError, ValueError, or IndexError (an id, or a sequence longer than the model's context).
        """
        check_number("forward", "dropout_rate", dropout_rate, at_least=0, below=1)
        seed = check_seed("forward", dropout_seed, "dropout_seed")
        tokens = len(ids)
        self._make_room(tokens, self.config.layers)
        step = self._embed(ids, starts, token_types, dropout_rate, seed)
        step.layers = [saved.first(tokens) for saved in self._space]
        x = step.stream
        for layer, saved in zip(self._layers, step.layers, strict=True):
            x = layer.forward(x, saved, step.packing)
        self._step = step
        return self._normed(x, step)

    def backward(self, d_hidden: np.ndarray) -> None:
        """Adds to parameters' gradients those of the last forward; d_hidden: float [tokens, dim], its content is lost."""
        step = self._step
        if step is None:
            raise ValueError("backward: a forward must come first; each is good for one backward")
        self._step = None
        space = self._make_gradients(len(step.ids))
        d, packing = d_hidden, step.packing
        if self._final_norm is not None:
            self._final_norm.backward(d, step.layers[-1].out, step.final_norm_saved, None, d)
        for layer in reversed(self._layers):
            x = step.layers[layer.index - 1].out if layer.index else step.stream
            d = layer.backward(d, x, step.layers[layer.index], space, packing)
        if packing.d_bias is not None:
            relative_table_backward(packing.d_bias, self.parameters.gradient("relative.weight"))
        if not self.freeze_embeddings:
            self._embed_backward(step, d)

    def infer(self, ids: np.ndarray, starts: np.ndarray, token_types: np.ndarray | None = None) -> np.ndarray:
        """As forward without dropout, keeping nothing for a backward: all layers share one layer's arrays."""
        self._step = None
        self._make_room(len(ids), 1)
        step = self._embed(ids, starts, token_types, 0.0, 0)
        saved, x = self._space[0].first(len(ids)), step.stream
        for layer in self._layers:
            x = layer.forward(x, saved, step.packing)
        return self._normed(x, step)

    def gradient_of_hidden(self, tokens: int) -> np.ndarray:
        """float [tokens, dim], memory for the argument of backward."""
        return self._make_gradients(tokens).stream

    def tensors(self) -> dict[str, np.ndarray]:
        """All weights as they are now, by the names and in the shapes of encoder_config.encoder_shapes."""
        dim, found = self.config.dim, {}
        for name in _plain_shapes(self.config):
            weight = self._weight(_trained_name(name))
            part = _part(name)
            if part in QKV:
                start = QKV.index(part) * dim
                weight = weight[..., start : start + dim]
            found[name] = np.ascontiguousarray(weight.T) if _is_linear(name) else weight.copy()
        return found

    # ---- layers ----

    def _make_layers(self) -> list[EncoderLayer]:
        c = self.config
        rotaries = {False: self._rotary(c.rotary_base), True: self._rotary(c.local_rotary_base)}
        return [
            LAYERS[c.placement](c, self.parameters, index, rotaries[is_local], c.window if is_local else None)
            for index, is_local in enumerate(c.local_layers or (False,) * c.layers)
        ]

    def _rotary(self, base: float | None) -> Rotary:
        if base is None:
            return Rotary(None, None)
        return Rotary(*(x.astype(self.dtype) for x in rotary_tables(self.config.context, self.config.head_dim, base)))

    def _normed(self, x: np.ndarray, step: _Step) -> np.ndarray:
        """The hidden states: the last layer's output, after the final norm where there is one."""
        if self._final_norm is None:
            return x
        _, step.final_norm_saved = self._final_norm.forward(x, self._embedded[2, : len(x)])
        return self._embedded[2, : len(x)]

    # ---- embeddings ----

    def _embed(
        self, ids: np.ndarray, starts: np.ndarray, token_types: np.ndarray | None, rate: float, seed: int
    ) -> _Step:
        tokens, lengths = len(ids), np.diff(starts)
        positions = np.arange(tokens) - np.repeat(starts[:-1], lengths)
        types = np.zeros(tokens, np.int64) if token_types is None else token_types
        embedded, stream = self._embedded[0, :tokens], self._embedded[1, :tokens]
        embedding(self._weight("embedding.weight"), ids, out=embedded)
        if self.config.learned_positions:
            add_positions(embedded, self._weight("positions.weight"), positions)
        if self.config.token_types:
            add_positions(embedded, self._weight("token_types.weight"), types)
        _, norm_saved = layernorm(
            embedded, self._weight("embedding_norm.weight"), self._bias("embedding_norm.bias"),
            epsilon=self.config.norm_epsilon, out=stream, return_saved=True,
        )  # fmt: skip
        if rate > 0:
            dropout(stream, rate, fold_seed(seed, EMBEDDING_DROPOUT), out=stream)
        table = d_table = None
        if self.config.relative_buckets:
            table = relative_table(self._weight("relative.weight"))
            d_table = np.zeros_like(table)
        packing = Packing(starts, positions, rate, seed, table, d_table)
        return _Step(ids, types, packing, embedded, norm_saved, stream, [])

    def _embed_backward(self, step: _Step, d: np.ndarray) -> None:
        assert self._embedding_norm is not None
        packing = step.packing
        if packing.rate > 0:
            dropout(d, packing.rate, fold_seed(packing.seed, EMBEDDING_DROPOUT), out=d)
        self._embedding_norm.backward(d, step.embedded, step.norm_saved, None, d)
        tables = [("embedding", step.ids)]
        if self.config.learned_positions:
            tables.append(("positions", packing.positions))
        if self.config.token_types:
            tables.append(("token_types", step.token_types))
        for name, rows in tables:
            gradient = self.parameters.gradient(f"{name}.weight")
            embedding_backward(d, rows, len(gradient)).add_to(gradient)

    # ---- memory ----

    def _weight(self, name: str) -> np.ndarray:
        return self._frozen[name] if name in self._frozen else self.parameters[name]

    def _bias(self, name: str) -> np.ndarray | None:
        return self._weight(name) if self.config.norm_bias else None

    def _make_room(self, tokens: int, layers: int) -> None:
        """Arrays for so many tokens and layers, those of the last step where they are large enough."""
        room = -(-tokens // GROWTH) * GROWTH
        if self._embedded.shape[1] < tokens:
            self._embedded = aligned_empty((3, room, self.config.dim), self.dtype)
        if self._space and len(self._space[0].out) < tokens:
            self._space, self._arena = [], Arena()  # let the old arrays go before new ones are made
        while len(self._space) < layers:
            capacity = len(self._space[0].out) if self._space else room
            self._space.append(EncoderActivations.new(self.config, capacity, self.dtype, self._arena))

    def _make_gradients(self, tokens: int) -> EncoderGradients:
        if self._gradients is None or len(self._gradients.stream) < tokens:
            self._gradients = None
            room = -(-tokens // GROWTH) * GROWTH
            self._gradients = EncoderGradients.new(self.config, room, self.dtype, Arena())
        return self._gradients.first(tokens)


def numbers_per_token(config: EncoderConfig) -> int:
    """How many numbers a step keeps for each token: activations of all layers, and gradients of one."""
    hidden = (2 if config.gated else 1) * config.hidden
    layer = 8 * config.dim + hidden + config.hidden + config.heads + 4
    return config.layers * layer + 9 * config.dim + hidden


# ---- names: a file's tensors (encoder_shapes) and those that learn ----


def _plain_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in encoder_shapes(config).items() if not name.startswith("head.")}


def _trained_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Linear weights as [in, out], q, k and v as one."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in _plain_shapes(config).items():
        wide = 3 if _part(name) in QKV else 1
        shapes[_trained_name(name)] = (*shape[1:], wide * shape[0]) if _is_linear(name) or wide == 3 else shape
    return shapes


def _read(tensors: "Mapping[str, StoredTensor]", name: str) -> np.ndarray:
    """The values of one of _trained_shapes."""
    stem = name.replace(".qkv.", ".{}.")
    parts = [stem.format(letter) for letter in "qkv"] if stem != name else [name]
    values = np.concatenate([tensors[part].values() for part in parts])
    return values.T if _is_linear(name) else values


def _part(name: str) -> str:
    """ "attention.q" of "layers.3.attention.q.weight"."""
    stem = name.rsplit(".", 1)[0]
    return stem.split(".", 2)[2] if stem.startswith("layers.") else stem


def _trained_name(name: str) -> str:
    part = _part(name)
    return name.replace(f".{part}.", ".attention.qkv.") if part in QKV else name


def _is_linear(name: str) -> bool:
    """Whether this is a linear map's matrix."""
    return name.startswith("layers.") and name.endswith(".weight") and not _part(name).endswith("norm")
