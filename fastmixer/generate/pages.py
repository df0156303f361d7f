"""Who holds which page of keys and values, and which pages of earlier texts can be used again.

A block is 64 tokens after the same beginning: found by its parent block and its ids, it has a page in each group of layers.
Pages that nobody holds stay as long as there is room; the one that was let go longest ago is taken first. A page belongs
to its block only when it is full, so pages that are shared are never written: a sequence whose beginning ends within a
page computes the rest of that page itself. Knows nothing of what pages hold.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastmixer.kernels.decoder.pages import PAGE

LOCAL_SEQUENCES = 8  # so many at least fit into the pages of groups with a window


class Block:
    """64 tokens after a beginning. pages: of each group, -1 where the page is used for something else by now."""

    __slots__ = ("children", "id", "key", "pages", "parent")

    def __init__(self, block_id: int, parent: "Block | None", key: tuple[int, bytes], groups: int):
        self.id, self.parent, self.key = block_id, parent, key
        self.pages = [-1] * groups
        self.children = 0


class PagePool:
    """All pages of all groups. pages_per_group: how many; windows: how many positions a token of a group sees, 0: all."""

    def __init__(self, pages_per_group: Sequence[int], windows: Sequence[int]):
        self.sizes, self.windows = tuple(pages_per_group), tuple(windows)
        self._free = [list(range(size - 1, -1, -1)) for size in self.sizes]
        self._holders = [[0] * size for size in self.sizes]
        self._block_of: list[dict[int, Block]] = [{} for _ in self.sizes]
        self._idle: list[OrderedDict[int, None]] = [OrderedDict() for _ in self.sizes]  # let go longest ago first
        self._blocks: dict[tuple[int, bytes], Block] = {}
        self._next_id = 1  # 0: the beginning of every text

    def available(self, group: int) -> int:
        """Pages that nobody holds."""
        return len(self._free[group]) + len(self._idle[group])

    @property
    def held(self) -> int:
        """Pages that somebody holds, in all groups."""
        return sum(size - self.available(group) for group, size in enumerate(self.sizes))

    @property
    def remembered(self) -> int:
        """Pages of all groups that can be found again."""
        return sum(map(len, self._block_of))

    def take(self, group: int) -> int:
        """A page for one holder. There must be one available."""
        if self._free[group]:
            page = self._free[group].pop()
        else:
            page, _ = self._idle[group].popitem(last=False)
            self._forget_page(group, page)
        self._holders[group][page] = 1
        return page

    def hold(self, group: int, page: int) -> None:
        """One more holder."""
        self._holders[group][page] += 1
        self._idle[group].pop(page, None)

    def release(self, group: int, page: int) -> None:
        """One holder less."""
        self._holders[group][page] -= 1
        if self._holders[group][page] == 0:
            if page in self._block_of[group]:
                self._idle[group][page] = None
            else:
                self._free[group].append(page)

    def is_held(self, group: int, page: int) -> bool:
        """Whether somebody holds the page."""
        return self._holders[group][page] > 0

    def find(self, ids: np.ndarray) -> list[Block]:
        """The blocks that ids (int64 [tokens]) begin with, as many as can be used by what follows them, which is at least
        one token: of groups with a window those pages suffice which that token sees."""
        found: list[Block] = []
        parent = 0
        for start in range(0, (len(ids) - 1) // PAGE * PAGE, PAGE):
            block = self._blocks.get((parent, ids[start : start + PAGE].tobytes()))
            if block is None or any(
                page < 0 and not window for page, window in zip(block.pages, self.windows, strict=True)
            ):
                break
            found.append(block)
            parent = block.id
        while found and any(
            found[index].pages[group] < 0
            for group, window in enumerate(self.windows)
            if window
            for index in range(first_visible(len(found) * PAGE, window) // PAGE, len(found))
        ):
            found.pop()
        return found

    def publish(self, parent: Block | None, ids: np.ndarray, pages: Sequence[int]) -> Block:
        """The block of ids (int64 [PAGE]) after parent (None: at the beginning), which keeps these pages (one a group, -1:
        not there any more) where it has none."""
        key = (parent.id if parent else 0, ids.tobytes())
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = Block(self._next_id, parent, key, len(self.sizes))
            self._next_id += 1
            if parent:
                parent.children += 1
        for group, page in enumerate(pages):
            if block.pages[group] < 0 <= page:
                block.pages[group] = page
                self._block_of[group][page] = block
        return block

    def forget(self) -> None:
        """Nothing of earlier texts is found again; pages that are held stay."""
        self._blocks.clear()
        for group, idle in enumerate(self._idle):
            self._free[group] += idle
            idle.clear()
            self._block_of[group].clear()

    def recount(self, held: Sequence[Iterable[int]]) -> None:
        """Only these pages (of each group, once for each holder) are held: after an interruption that nobody knows the
        place of."""
        for group, pages in enumerate(held):
            holders = self._holders[group] = [0] * self.sizes[group]
            for page in pages:
                holders[page] += 1
            known, before = self._block_of[group], self._idle[group]
            unheld = [page for page in known if not holders[page]]
            older = [page for page in before if page in known and not holders[page]]
            self._idle[group] = OrderedDict.fromkeys(older + unheld)
            self._free[group] = [
                page for page in range(self.sizes[group] - 1, -1, -1) if not holders[page] and page not in known
            ]

    def _forget_page(self, group: int, page: int) -> None:
        """The page is no longer its block's; blocks without pages and followers are gone."""
        block: Block | None = self._block_of[group].pop(page)
        assert block is not None
        block.pages[group] = -1
        while block and not block.children and max(block.pages) < 0 and self._blocks.get(block.key) is block:
            del self._blocks[block.key]
            block = block.parent
            if block:
                block.children -= 1


def first_visible(position: int, window: int) -> int:
    """The first position that a token at this one sees, window 0: all."""
    return max(0, position - window + 1) if window else 0


def most_pages(tokens: int, window: int, chunk: int) -> int:
    """Pages that a sequence of so many tokens holds at most, of a group with this window, if it grows by up to chunk."""
    total = -(-tokens // PAGE)
    return min(total, (window - 1 + chunk + PAGE - 2) // PAGE + 1) if window else total


def sequence_bytes(shape: Any, chunk: int, dtype: str) -> int:
    """Bytes of the pages that one sequence as long as the context holds at most. shape: a Decoder, or the Plan of one."""
    pages = [most_pages(shape.config.context, window, chunk) for window in shape.windows]
    return bytes_of_pages(shape, pages, dtype)


def cache_pages(shape: Any, tokens: int, chunk: int) -> tuple[int, ...]:
    """Pages of each group for a cache of so many tokens; of groups with a window only what some sequences see."""
    pages = max(1, tokens // PAGE)
    return tuple(
        min(pages, LOCAL_SEQUENCES * most_pages(shape.config.context, window, chunk)) if window else pages
        for window in shape.windows
    )


def bytes_of_pages(shape: Any, sizes: Sequence[int], dtype: str) -> int:
    """Bytes of so many pages of each group."""
    return sum(size * shape.page_bytes(group, dtype) for group, size in enumerate(sizes))
