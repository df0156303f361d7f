"""All parameters in one flat buffer and all gradients in another, with named views: the optimizer is one loop.

Knows nothing of what the parameters mean.
"""

import bisect
from collections.abc import Iterator, Sequence

import numpy as np

ALIGNMENT = 16  # floats: every view starts on a cache line


class Parameters:
    """Named views into two flat buffers, data and gradients_data: float [size].

    parameters["final_norm.weight"] is a view; parameters.gradient(name) its gradient, which backward adds to. The few
    numbers between views that alignment needs are zero and stay zero.
    """

    def __init__(self, shapes: Sequence[tuple[str, tuple[int, ...]]], dtype: np.dtype | type = np.float32):
        self._starts: list[int] = []
        self._names: list[str] = []
        places: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        end = 0
        for name, shape in shapes:
            count = int(np.prod(shape))
            places[name] = (end, end + count, shape)
            self._starts.append(end)
            self._names.append(name)
            end = -(-(end + count) // ALIGNMENT) * ALIGNMENT
        self.data = np.zeros(end, dtype)
        self.gradients_data = np.zeros(end, dtype)
        self._views = {name: self.data[a:b].reshape(shape) for name, (a, b, shape) in places.items()}
        self._gradients = {name: self.gradients_data[a:b].reshape(shape) for name, (a, b, shape) in places.items()}

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

    def gradient(self, name: str) -> np.ndarray:
        """The gradient of this name, a view that backward adds to."""
        return self._gradients[name]

    def get_gradient(self, name: str) -> np.ndarray | None:
        """The gradient of this name, None if there is none."""
        return self._gradients.get(name)

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

    def locate(self, index: int) -> str:
        """The name of the parameter at this place of the flat buffer."""
        return self._names[bisect.bisect_right(self._starts, index) - 1]

    def zero_gradients(self) -> None:
        """Set all gradients to zero."""
        self.gradients_data.fill(0)
