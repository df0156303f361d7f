"""Keys and values of past tokens, in pages of 64 tokens that sequences hold by number, for each group of layers.

A group is layers that need the same pages: those that see everything, those with a window. Which page holds what is the
caller's: tables int32 [groups, sequences, pages] say so, -1 where none is held. Knows nothing of sequences.
"""

import contextlib
import math
import mmap

import numpy as np

from fastmixer.kernels.bfloat16 import round_bits

PAGE = 64  # tokens
RUN = 4  # pages that a task of attention reads one after another (RUN_PAGES of attend.h)
DTYPES = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}


class KVPages:
    """keys[g]: [runs, layers, kv_heads, RUN, head_dim, PAGE], transposed within a page, so that scores of 64 keys are sums
    along memory; values[g]: [runs, layers, kv_heads, RUN, PAGE, head_dim]. dtype: "float32", "bfloat16" (as uint16) or
    "int8", which has key_scales[g], value_scales[g]: float32 [runs, layers, kv_heads, RUN, PAGE], one for each head's row.

    Page p is number p % RUN of run p // RUN: what one head has of a run lies side by side, as memory is read faster in
    longer pieces (a token at 4,096 takes 4 % less on a Zen 4, and no less with runs of 16). layers_per_group,
    pages_per_group: sizes of each group; runs are whole. Memory is zero, and not touched before it is written.
    """

    def __init__(
        self,
        layers_per_group: tuple[int, ...],
        pages_per_group: tuple[int, ...],
        kv_heads: int,
        head_dim: int,
        dtype: str,
    ):
        self.dtype, self.kv_heads, self.head_dim = dtype, kv_heads, head_dim
        self.layers_per_group, self.pages_per_group = tuple(layers_per_group), tuple(pages_per_group)
        self.keys: list[np.ndarray] = []
        self.values: list[np.ndarray] = []
        self.key_scales: list[np.ndarray] = []
        self.value_scales: list[np.ndarray] = []
        for layers, pages in zip(layers_per_group, pages_per_group, strict=True):
            places = (-(-pages // RUN), layers, kv_heads, RUN)
            self.keys.append(_zeros((*places, head_dim, PAGE), DTYPES[dtype]))
            self.values.append(_zeros((*places, PAGE, head_dim), DTYPES[dtype]))
            if dtype == "int8":
                self.key_scales.append(_zeros((*places, PAGE), np.float32))
                self.value_scales.append(_zeros((*places, PAGE), np.float32))

    @property
    def nbytes(self) -> int:
        """Bytes of the pages; those that make the last run whole are never touched."""
        return sum(
            pages * array[0, :, :, 0].nbytes
            for arrays in (self.keys, self.values, self.key_scales, self.value_scales)  # scales: of every group or of none
            for pages, array in zip(self.pages_per_group, arrays, strict=False)
            if pages
        )

    def copy_page(self, group: int, source: int, target: int) -> None:
        """Page `target` becomes what page `source` is, in all layers of the group."""
        for arrays in (self.keys, self.values, self.key_scales, self.value_scales):
            if arrays:
                array = arrays[group]
                array[target // RUN, :, :, target % RUN] = array[source // RUN, :, :, source % RUN]

    def write(
        self, group: int, layer: int, pages: np.ndarray, slots: np.ndarray, keys: np.ndarray, values: np.ndarray
    ) -> None:
        """keys, values: float32 [tokens, kv_heads, head_dim] of one layer go to slots [tokens] of pages [tokens]."""
        key_rows, key_scales = self._rounded(keys)
        value_rows, value_scales = self._rounded(values)
        run, at = np.divmod(pages, RUN)
        self.keys[group][run, layer, :, at, :, slots] = key_rows
        self.values[group][run, layer, :, at, slots] = value_rows
        if self.dtype == "int8":
            self.key_scales[group][run, layer, :, at, slots] = key_scales
            self.value_scales[group][run, layer, :, at, slots] = value_scales

    def read(self, group: int, layer: int, pages: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(keys, values), float32 [tokens, kv_heads, head_dim] of one layer at slots [tokens] of pages [tokens]."""
        run, at = np.divmod(pages, RUN)
        keys = self._widened(self.keys[group][run, layer, :, at, :, slots])
        values = self._widened(self.values[group][run, layer, :, at, slots])
        if self.dtype == "int8":
            keys *= self.key_scales[group][run, layer, :, at, slots][..., None]
            values *= self.value_scales[group][run, layer, :, at, slots][..., None]
        return keys, values

    def _rounded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """rows [..., head_dim] as they are kept, and their scales [...] in int8."""
        if self.dtype == "float32":
            return rows, None
        if self.dtype == "bfloat16":
            return round_bits(rows), None
        scales = np.abs(rows).max(axis=-1, initial=0) / np.float32(127)
        inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
        return np.rint(rows * inverse[..., None]).astype(np.int8), scales

    def _widened(self, rows: np.ndarray) -> np.ndarray:
        """Kept rows as float32, without their scales."""
        if self.dtype == "bfloat16":
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return rows.astype(np.float32)


def _zeros(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """np.zeros, in memory that comes as it is written, in pieces of 2 MB where the system has them: what a run holds of all
    layers is next to each other, so the first token waits for few of them to be cleared, and a long context is found by
    few entries of the processor's tables (int8 at 4,096 tokens: 158 -> 180 tokens/s)."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size == 0:
        return np.zeros(shape, dtype)
    own = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, size, **own)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a wish: kernels built without large pieces refuse it
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)
