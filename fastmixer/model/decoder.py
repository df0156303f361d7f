"""An opened model as one that answers: its weights packed for this processor, its layers as one kernel call a step.

Many sequences go through a step together, each with pages of its own. Knows nothing of sampling, or of who holds which
page.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmixer.kernels.decoder.pages import DTYPES, PAGE, KVPages
from fastmixer.kernels.decoder.spec import DecoderSpec, LayerSpec, Linear, Norm
from fastmixer.kernels.packed import KINDS, PackedWeight
from fastmixer.kernels.select import implementation, kernel_module, kernels
from fastmixer.model.config import ModelConfig
from fastmixer.model.packed_cache import PackedCache
from fastmixer.ops.bfloat16 import is_fast
from fastmixer.ops.checks import check_choice, check_id_range
from fastmixer.ops.positions import rotary_tables, sinusoidal_table
from fastmixer.progress import LateBar

if TYPE_CHECKING:
    from fastmixer.weights.source import ModelSource
    from fastmixer.weights.stored import StoredTensor

WEIGHTS = ("auto", *KINDS)
PLAIN_TYPES = ("F32", "F16", "BF16")
TABLES = ("embedding.weight", "head.weight")
FOUR_BITS = ("Q4_0", "Q4_1", "Q4_K")  # what the kind "int4" holds without changing a value


class Decoder:
    """The model of a ModelSource, ready to run.

    weights: how matrices are kept: "float32", "bfloat16", "int8" or "int4", or "auto": as their file has them, 4-bit
    blocks in int4, other blocks in int8 (exact for those of 5 and 8 bits; of the others see kernels/packed/reference.py),
    plain numbers in bfloat16 where the processor multiplies it, else in float32. "int4" keeps embedding and head in int8.
    kinds: how each matrix is kept, by name. windows: of each group of layers, how many positions a token sees (0: all);
    tables have one row of pages a group. progress: a bar while weights are packed, where that takes over a second.
    packed_cache: the folder where packed weights are kept from one load to the next (packed_cache.py), None: nowhere.
    """

    def __init__(
        self, source: "ModelSource", weights: str = "auto", *, progress: bool = True, packed_cache: Path | None = None
    ):  # fmt: skip
        check_choice("Decoder", "weights", weights, WEIGHTS)
        self.config: ModelConfig = source.config
        self.weights = weights
        self.kinds: dict[str, str] = {}
        self._source: ModelSource | None = source
        module = kernels("decoder")
        self._packing = kernel_module("packed", implementation("decoder"))
        layer_windows = _layer_windows(self.config)
        self._group_of = _groups_of(layer_windows)
        self.windows, self._layers_per_group = cache_groups(self.config)
        with packing_bar(source.tensors.values(), progress) as self._progress:
            self._kept = self._kept_weights(packed_cache)
            self.spec = self._make_spec(layer_windows)
        del self._progress, self._kept
        self._source = None  # what was packed needs the file no more
        self._decoder = module.Decoder(self.spec)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as they are kept."""
        return spec_bytes(self.spec)

    def new_pages(self, pages_per_group: int | Sequence[int], dtype: str = "bfloat16") -> KVPages:
        """Empty pages of 64 tokens for keys and values: so many in each group of layers. dtype: "float32", "bfloat16" or
        "int8"."""
        check_choice("new_pages", "dtype", dtype, tuple(DTYPES))
        groups = len(self.windows)
        counts = (pages_per_group,) * groups if isinstance(pages_per_group, int) else tuple(pages_per_group)
        if len(counts) != groups or not all(type(count) is int and count >= 1 for count in counts):
            raise ValueError(f"new_pages: pages_per_group must be {groups} integers >= 1; got {pages_per_group!r}")
        return KVPages(self._layers_per_group, counts, self.config.kv_heads, self.config.head_dim, dtype)

    def page_bytes(self, group: int, dtype: str = "bfloat16") -> int:
        """Bytes of one page of a group."""
        return page_bytes(self.config, self._layers_per_group[group], dtype)

    def forward(
        self,
        ids: np.ndarray,
        starts: np.ndarray,
        first_positions: np.ndarray,
        pages: KVPages,
        tables: np.ndarray,
        wanted: np.ndarray | None = None,
        *,
        logits: bool = True,
        hidden: bool = False,
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(logits float32 [n, vocab], hidden float32 [n, dim] after the final norm) of n wanted tokens; None: not asked for.

        ids: int64 [tokens], of sequence s those from starts[s] to starts[s + 1] (starts: int64 [sequences + 1]), at
        positions first_positions[s] + 0, 1, ... (int64 [sequences]). Their keys and values are written into pages.
        tables: int32 [groups, sequences, pages a sequence], the page that holds the i-th 64 positions, -1 where none is
        held, which is allowed where a window has passed. wanted: int64 [n], places in ids (None: each sequence's last).
        Raises ValueError or IndexError before anything is written.
        """
        ids, starts, first_positions = (
            _integers(name, array)
            for name, array in (("ids", ids), ("starts", starts), ("first_positions", first_positions))
        )
        check_id_range("forward", "ids", ids, self.config.vocab)
        lengths = np.diff(starts)
        if len(starts) != len(first_positions) + 1 or starts[0] != 0 or starts[-1] != len(ids) or (lengths < 0).any():
            raise ValueError(
                f"forward: starts must rise from 0 to {len(ids)} tokens over {len(first_positions)} sequences; got {starts}"
            )
        if wanted is None:
            wanted = starts[1:][lengths > 0] - 1
        else:
            wanted = _integers("wanted", wanted)
            check_id_range("forward", "wanted", wanted, len(ids))
        ends = first_positions + lengths
        if len(ends) and (first_positions.min() < 0 or ends.max() > self.config.context):
            raise ValueError(
                f"forward: positions must be 0..{self.config.context - 1}, the model's context; "
                f"got {first_positions.min()}..{ends.max() - 1}"
            )
        tables = self._checked_tables(tables, pages, first_positions, ends)
        out = np.empty((len(wanted), self.config.vocab), np.float32) if logits else None
        out_hidden = np.empty((len(wanted), self.config.dim), np.float32) if hidden else None
        if len(ids):
            self._decoder.forward(ids, starts, first_positions, pages, tables, wanted, out, out_hidden)
        return out, out_hidden

    def step(
        self, ids: np.ndarray, starts: np.ndarray, first_positions: np.ndarray, pages: KVPages, tables: np.ndarray,
        wanted: np.ndarray, logits: np.ndarray, written: np.ndarray,
    ) -> None:  # fmt: skip
        """forward into logits: float32 [n, vocab], for a caller that made every array itself and holds every page: nothing
        is checked, which took a fiftieth of a small model's token. written: uint8 [sequences], 1 where a sequence's tokens
        are being written, at most FEW_TOKENS (kernels/decoder/spec.py): natively each comes out bit for bit as it would
        alone; 0 where a text is read: as in any other piece of it."""
        self._decoder.forward(ids, starts, first_positions, pages, tables, wanted, logits, None, written)

    def _checked_tables(
        self, tables: np.ndarray, pages: KVPages, first_positions: np.ndarray, ends: np.ndarray
    ) -> np.ndarray:
        shape = (len(self.windows), len(ends))
        if tables.ndim != 3 or tables.shape[:2] != shape or tables.dtype != np.int32:
            raise ValueError(
                f"forward: tables must be int32 [groups={shape[0]}, sequences={shape[1]}, pages]; "
                f"got {tables.dtype.name} {tables.shape}"
            )
        if (pages.layers_per_group, pages.kv_heads, pages.head_dim) != (
            self._layers_per_group, self.config.kv_heads, self.config.head_dim,
        ):  # fmt: skip
            raise ValueError("forward: pages must be made by this decoder's new_pages")
        place, working = np.arange(tables.shape[2]), (ends > first_positions)[:, None]
        end = -(-ends // PAGE)
        if len(end) and (end * working[:, 0]).max() > tables.shape[2]:
            raise ValueError(f"forward: tables must hold {(end * working[:, 0]).max()} pages; got {tables.shape[2]}")
        for group, window in enumerate(self.windows):
            first = np.maximum(0, first_positions - window + 1) // PAGE if window else np.zeros_like(end)
            needed = (place >= first[:, None]) & (place < end[:, None]) & working
            wrong = needed & ((tables[group] < 0) | (tables[group] >= pages.pages_per_group[group]))
            if wrong.any():
                sequence, at = np.argwhere(wrong)[0]
                raise ValueError(
                    f"forward: tables[{group}, {sequence}, {at}] must be a page, "
                    f"0..{pages.pages_per_group[group] - 1}; got {tables[group, sequence, at]}"
                )
        return np.ascontiguousarray(tables)

    # ---- from tensors to the spec ----

    def _make_spec(self, windows: list[int]) -> DecoderSpec:
        c = self.config
        embedding = self._matrix("embedding.weight")
        positions = None
        if c.positions == "learned":
            positions = self._tensor("positions.weight").values()
        elif c.positions == "sinusoidal":
            positions = sinusoidal_table(c.context, c.dim)
        rotations = self._rotations(windows)
        layers = tuple(self._layer(index, window, rotations[window > 0]) for index, window in enumerate(windows))
        head = embedding if c.tied_head else self._matrix("head.weight")
        return DecoderSpec(
            dim=c.dim, heads=c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim, hidden=c.hidden, vocab=c.vocab,
            activation=c.activation,
            attention_scale=c.head_dim**-0.5 if c.attention_scale is None else c.attention_scale,
            attention_softcap=c.attention_softcap, logit_softcap=c.logit_softcap, embedding_scale=c.embedding_scale,
            embedding=embedding, positions=positions, layers=layers, final_norm=self._norm("final_norm"),
            head=Linear(head, None),
        )  # fmt: skip

    def _rotations(self, windows: list[int]) -> dict[bool, tuple[np.ndarray | None, np.ndarray | None]]:
        """(cos, sin) of layers that see everything (False) and of local ones (True)."""
        c = self.config
        if c.positions != "rotary":
            return {False: (None, None), True: (None, None)}
        width = c.rotary_dim or c.head_dim
        tables: dict[bool, Any] = {}
        local_differs = c.local_rotary_base is not None
        if 0 in windows or not local_differs:
            tables[False] = tables[True] = rotary_tables(
                c.context, width, c.rotary_base, factors=c.rotary_factors, magnitude=c.rotary_magnitude
            )
        if local_differs and any(windows):
            assert c.local_rotary_base is not None
            tables[True] = rotary_tables(c.context, width, c.local_rotary_base)
        return tables

    def _layer(self, index: int, window: int, rotation: tuple[np.ndarray | None, np.ndarray | None]) -> LayerSpec:
        c, prefix = self.config, f"layers.{index}"
        group = self._group_of[index]
        return LayerSpec(
            attention_norm=self._norm(f"{prefix}.attention_norm"),
            q=self._linear(f"{prefix}.attention.q", c.has_qkv_bias),
            k=self._linear(f"{prefix}.attention.k", c.has_qkv_bias),
            v=self._linear(f"{prefix}.attention.v", c.has_qkv_bias),
            q_norm=self._head_norm(f"{prefix}.attention.q_norm"),
            k_norm=self._head_norm(f"{prefix}.attention.k_norm"),
            output=self._linear(f"{prefix}.attention.output"),
            attention_post_norm=self._norm(f"{prefix}.attention_post_norm") if c.post_norms else None,
            feedforward_norm=self._norm(f"{prefix}.feedforward_norm"),
            gate=self._linear(f"{prefix}.feedforward.gate") if c.gated else None,
            up=self._linear(f"{prefix}.feedforward.up"),
            down=self._linear(f"{prefix}.feedforward.down"),
            feedforward_post_norm=self._norm(f"{prefix}.feedforward_post_norm") if c.post_norms else None,
            window=window, cos=rotation[0], sin=rotation[1], group=group, index=self._group_of[:index].count(group),
        )  # fmt: skip

    def _tensor(self, name: str) -> Any:
        assert self._source is not None
        return self._source.tensors[name]

    def _vector(self, name: str) -> np.ndarray:
        return np.ascontiguousarray(self._tensor(name).values())

    def _norm(self, name: str) -> Norm:
        has_bias = self.config.norm == "layernorm" and self.config.bias
        bias = self._vector(f"{name}.bias") if has_bias else None
        return Norm(self.config.norm, self._vector(f"{name}.weight"), bias, self.config.norm_epsilon)

    def _head_norm(self, name: str) -> Norm | None:
        if not self.config.qk_norm:
            return None
        return Norm("rmsnorm", self._vector(f"{name}.weight"), None, self.config.norm_epsilon)

    def _linear(self, name: str, has_bias: bool | None = None) -> Linear:
        has_bias = self.config.bias if has_bias is None else has_bias
        return Linear(self._matrix(f"{name}.weight"), self._vector(f"{name}.bias") if has_bias else None)

    def _matrix(self, name: str) -> PackedWeight:
        packed = self._kept[name] if name in self._kept else self._packed(name)
        self.kinds[name] = packed.kind
        return packed

    def _packed(self, name: str) -> PackedWeight:
        tensor = self._tensor(name)
        kind = kind_of(tensor.type.name, self.weights, name in TABLES)
        packed = self._packing.pack_weight(np.ascontiguousarray(tensor.raw), tensor.type.name, *tensor.shape, kind)
        self._progress.update(tensor.nbytes)
        return packed

    def _kept_weights(self, folder: Path | None) -> Mapping[str, PackedWeight]:
        """Packed weights from the disk, which are written there first where they are not there yet."""
        if folder is None:
            return {}
        assert self._source is not None
        kept = PackedCache(folder, self._source, self.weights, implementation("decoder"))
        if not kept.open():
            kept.make(self._all_packed(kept.names))
        return kept

    def _all_packed(self, names: Sequence[str]) -> Iterator[tuple[str, PackedWeight]]:
        for name in names:
            yield name, self._packed(name)


def packing_bar(tensors: Iterable["StoredTensor"], shown: bool) -> LateBar:
    """A bar of the bytes of matrices."""
    total = sum(tensor.nbytes for tensor in tensors if len(tensor.shape) == 2)
    return LateBar(total, shown=shown, desc="packing weights", unit="B", unit_scale=True)


def kind_of(type_name: str, weights: str, is_table: bool) -> str:
    """How a matrix of this format is kept; is_table: embedding or head."""
    if weights == "int4" and is_table:
        return "int8"
    if weights != "auto":
        return weights
    if type_name in PLAIN_TYPES:
        return "bfloat16" if is_fast() else "float32"
    return "int4" if type_name in FOUR_BITS else "int8"


def spec_bytes(spec: Any) -> int:
    """Bytes of all arrays of a spec, those that stand in two places once."""
    found: dict[int, int] = {}

    def add(part: Any) -> None:
        if isinstance(part, PackedWeight | np.ndarray):
            found[id(part)] = part.nbytes
        elif isinstance(part, tuple):
            for item in part:
                add(item)
        elif hasattr(part, "__dataclass_fields__"):
            for name in part.__dataclass_fields__:
                add(getattr(part, name))

    add(spec)
    return sum(found.values())


def cache_groups(config: ModelConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(how many positions a token sees, 0: all; the number of layers) of each group of layers."""
    windows = _layer_windows(config)
    group_of = _groups_of(windows)
    groups = range(max(group_of) + 1)
    return tuple(windows[group_of.index(group)] for group in groups), tuple(group_of.count(group) for group in groups)


def page_bytes(config: ModelConfig, layers: int, dtype: str) -> int:
    """Bytes of one page of so many layers."""
    row = config.head_dim * np.dtype(DTYPES[dtype]).itemsize + (4 if dtype == "int8" else 0)
    return 2 * layers * config.kv_heads * PAGE * row


def _groups_of(windows: list[int]) -> list[int]:
    """The group of each layer: those with a window stand apart if others see everything."""
    return [int(window > 0 and 0 in windows) for window in windows]


def _layer_windows(config: ModelConfig) -> list[int]:
    """Of each layer the window, 0 where a token sees everything, as it does if the window is as long as the context."""
    window = config.window or 0
    if window >= config.context:
        window = 0
    local = config.local_layers or (True,) * config.layers
    return [window if is_local else 0 for is_local in local]


def _integers(name: str, array: np.ndarray) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != np.int64:
        got = f"{array.dtype.name} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"forward: {name} must be int64 with one axis; got {got}")
    return np.ascontiguousarray(array)
