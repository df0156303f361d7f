"""All parameters in one flat buffer and all gradients in another, with named views: the optimizer is one loop.

Knows nothing of what the parameters mean.
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from fastmixer.kernels.memory import aligned_zeros
from fastmixer.ops.bfloat16 import RoundedWeight, round_weight
from fastmixer.ops.embedding import SparseRows

ALIGNMENT = 16  # floats: every view starts on a cache line


class Parameters:
    """Named views into two flat buffers, data and gradients_data: float [size].

    parameters["final_norm.weight"] is a view; parameters.gradient(name) its gradient, which backward adds to. The few
    numbers between views that alignment needs are zero and stay zero. In bfloat16 training matrices also have rounded
    copies, parameters.rounded(name): who writes into data must call round() then (fm.AdamW writes both in one pass). The
    gradient of a table that is kept sparse is parameters.sparse(name), rows that occurred; its dense one stays zero.

    Of matrices whose gradients each backward pass writes whole (keep_rewritten), an optimizer need not clear them: it sets
    `stale`, and whoever asks for gradients then finds zeros. A view that was taken before may show what is left over.
    """

    def __init__(self, shapes: Sequence[tuple[str, tuple[int, ...]]], dtype: np.dtype | type = np.float32):
        self._starts: list[int] = []
        self._names: list[str] = []
        self._places: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        end = 0
        for name, shape in shapes:
            count = int(np.prod(shape))
            self._places[name] = (end, end + count, shape)
            self._starts.append(end)
            self._names.append(name)
            end = -(-(end + count) // ALIGNMENT) * ALIGNMENT
        self.data = aligned_zeros(end, dtype)
        self._gradients_data = aligned_zeros(end, dtype)
        self.stale = False
        self._rounded: dict[str, RoundedWeight] = {}
        self._sparse: dict[str, SparseRows | None] = {}
        self._rewritten: tuple[str, ...] = ()
        self._look()

    def _look(self) -> None:
        """The views, into the buffers as they are now."""
        self._views = {name: self.data[a:b].reshape(shape) for name, (a, b, shape) in self._places.items()}
        self._gradients = {name: self._gradients_data[a:b].reshape(shape) for name, (a, b, shape) in self._places.items()}

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the views, which would become arrays of their own that nobody trains."""
        state = {name: value for name, value in vars(self).items() if name not in ("_views", "_gradients")}
        return {**state, "_rounded": list(self._rounded)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        for name in ("data", "_gradients_data"):  # onto a cache line again
            buffer = aligned_zeros(len(state[name]), state[name].dtype)
            buffer[...] = state[name]
            setattr(self, name, buffer)
        self._look()
        self.keep_rounded(state["_rounded"])

    @property
    def names(self) -> list[str]:
        """All names, in the order of the data's flow."""
        return list(self._names)

    @property
    def size(self) -> int:
        """The length of the flat buffers."""
        return len(self.data)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def __contains__(self, name: object) -> bool:
        return name in self._views

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def get(self, name: str) -> np.ndarray | None:
        """The view of this name, None if there is none (a bias that the configuration leaves out)."""
        return self._views.get(name)

    @property
    def gradients_data(self) -> np.ndarray:
        """All gradients: float [size]."""
        self._clear_stale()
        return self._gradients_data

    def _clear_stale(self) -> None:
        if self.stale:
            for name in self._rewritten:
                self._gradients[name].fill(0)
            self.stale = False

    def gradient(self, name: str) -> np.ndarray:
        """The gradient of this name, a view that backward adds to."""
        self._clear_stale()
        return self._gradients[name]

    def get_gradient(self, name: str) -> np.ndarray | None:
        """The gradient of this name, None if there is none."""
        return self.gradient(name) if name in self else None

    def keep_rewritten(self, names: Iterable[str]) -> None:
        """From now on backward passes that find `stale` set write these matrices' gradients whole and unset it."""
        self._rewritten = tuple(names)

    def is_rewritten(self, name: str | None) -> bool:
        """Whether this matrix's gradient need not be cleared."""
        return name in self._rewritten

    def keep_rounded(self, names: Iterable[str]) -> None:
        """From now on these matrices have copies in bfloat16."""
        self._rounded = {name: RoundedWeight.empty(*self._views[name].shape) for name in names}
        self.round()

    def round(self) -> None:
        """Make the copies in bfloat16, if there are any, from the weights as they are."""
        for name, rounded in self._rounded.items():
            round_weight(self._views[name], rounded)

    def rounded(self, name: str) -> RoundedWeight | None:
        """This matrix's copies in bfloat16, None if it has none."""
        return self._rounded.get(name)

    def keep_sparse(self, name: str) -> None:
        """From now on this table's gradient is made of rows."""
        self._sparse[name] = None

    def is_sparse(self, name: str) -> bool:
        """Whether this table's gradient is made of rows."""
        return name in self._sparse

    def sparse(self) -> dict[str, SparseRows]:
        """The gradients that are made of rows, by name, where there are any."""
        return {name: rows for name, rows in self._sparse.items() if rows is not None}

    def add_sparse(self, name: str, rows: SparseRows) -> None:
        """Add to a gradient that is made of rows."""
        before = self._sparse[name]
        self._sparse[name] = rows if before is None else before.merged(rows)

    def decayed(self, name: str) -> bool:
        """Whether weight decay applies: to matrices, not to norms and biases."""
        return self._views[name].ndim >= 2

    def decay_segments(self) -> list[tuple[int, int, bool]]:
        """The flat buffer cut where decay begins or ends: (start, stop, decayed), without gaps."""
        segments: list[tuple[int, int, bool]] = []
        stops = [*self._starts[1:], self.size]
        for name, start, stop in zip(self._names, self._starts, stops, strict=True):
            if segments and segments[-1][2] == self.decayed(name):
                segments[-1] = (segments[-1][0], stop, segments[-1][2])
            else:
                segments.append((start, stop, self.decayed(name)))
        return segments

    def update_segments(self) -> list[tuple[int, int, bool, str | None]]:
        """The flat buffer as an optimizer walks it: (start, stop, decayed, name). A matrix with rounded copies, or whose
        gradient is rewritten, is a segment of its own, without the gap after it, and has its name there; what lies between
        is cut where decay does.
        Tables whose gradients are made of rows are left out."""
        segments: list[tuple[int, int, bool, str | None]] = []
        for start, stop, decayed in self.decay_segments():
            first = bisect.bisect_left(self._starts, start)
            last = bisect.bisect_left(self._starts, stop)
            for name, begin in zip(self._names[first:last], self._starts[first:last], strict=True):
                if name in self._rounded or name in self._sparse or name in self._rewritten:
                    if begin > start:
                        segments.append((start, begin, decayed, None))
                    start = begin + self._views[name].size
                    if name not in self._sparse:
                        segments.append((begin, start, decayed, name))
            if start < stop:
                segments.append((start, stop, decayed, None))
        return segments

    def start(self, name: str) -> int:
        """Where this parameter begins in the flat buffers."""
        return self._starts[self._names.index(name)]

    def locate(self, index: int) -> str:
        """The name of the parameter at this place of the flat buffer."""
        return self._names[bisect.bisect_right(self._starts, index) - 1]

    def zero_gradients(self) -> None:
        """Set all gradients to zero."""
        self._gradients_data.fill(0)
        self.stale = False
        self.clear_sparse()

    def clear_sparse(self) -> None:
        """Forget the gradients that are made of rows."""
        self._sparse = dict.fromkeys(self._sparse)
