"""The one place where arrays that come from users are judged; everything below trusts what passed here.

An error names the op, the argument, what was expected and what came. Knows nothing of what the ops compute.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastmixer.kernels.select import implementation

OVERLAP_WORK = 1000  # what may be spent on whether strided arrays meet; views of q, k, v inside one array take 1


class Arrays:
    """Checks an op's arrays against each other: the first use of an axis name fixes its size for the later ones.

    arrays = Arrays("attention")
    q = arrays.check("q", q, "batch heads queries head_dim")
    k = arrays.check("k", k, "batch kv_heads keys head_dim")     # batch and head_dim must be q's

    Floats are float32. Where the NumPy reference is what runs, float64 is let through (gradient checks need it), as
    long as all of an op's arrays agree.
    """

    def __init__(self, op: str, kernel: str | None = None, **sizes: int):
        self.op = op
        self.sizes: dict[str, int] = dict(sizes)
        self.dtype: np.dtype | None = None
        self._kernel = kernel or op

    def check(self, name: str, value: Any, axes: str, *, contiguous: bool = True) -> np.ndarray:
        """value as a float array with these axes; a strided one is copied unless contiguous=False.

        Raises TypeError for a wrong type or dtype, ValueError for a wrong shape.
        """
        names = axes.split()
        self._require_array(name, value, names)
        if value.dtype != np.float32 and not (value.dtype == np.float64 and self._runs_float64()):
            raise TypeError(self._message(name, value, names))
        if self.dtype is None:
            self.dtype = value.dtype
        elif value.dtype != self.dtype:
            raise TypeError(self._message(name, value, names, dtype=self.dtype))
        self._bind(name, value, names)
        laid_out = value.flags.c_contiguous if contiguous else _is_strided(value)
        return value if laid_out and value.flags.aligned else np.array(value, order="C")

    def check_optional(self, name: str, value: Any, axes: str) -> np.ndarray | None:
        """As check; None stays None."""
        return None if value is None else self.check(name, value, axes)

    def check_output(self, name: str, value: Any, axes: str, *, contiguous: bool = True) -> np.ndarray:
        """value as an array that is written in place: right dtype and shape, writable, C-contiguous (or, with
        contiguous=False, its last axis contiguous)."""
        names = axes.split()
        self._require_array(name, value, names)
        expected = self.dtype or np.dtype(np.float32)
        if value.dtype != expected and not (self.dtype is None and value.dtype == np.float64 and self._runs_float64()):
            raise TypeError(self._message(name, value, names, dtype=expected))
        self.dtype = value.dtype
        self._bind(name, value, names)
        if not value.flags.writeable:
            raise ValueError(f"{self.op}: {name} is written in place and must be writable; got a read-only array")
        if not (value.flags.c_contiguous if contiguous else _is_strided(value)):
            wanted = "C-contiguous" if contiguous else "contiguous along its last axis"
            raise ValueError(f"{self.op}: {name} is written in place and must be {wanted}; got strides {value.strides}")
        if not value.flags.aligned:
            raise ValueError(
                f"{self.op}: {name} is written in place and must lie, and have strides, at multiples of its elements' size; "
                f"got strides {value.strides}"
            )
        return value

    def output(self, name: str, value: Any, axes: str) -> np.ndarray:
        """value if given (as check_output), else a new uninitialised array; every axis must have been seen."""
        if value is not None:
            return self.check_output(name, value, axes)
        return np.empty(tuple(self.sizes[axis] for axis in axes.split()), self.dtype or np.float32)

    def check_ids(self, name: str, value: Any, axes: str | None, limit: int, ignore: int | None = None) -> np.ndarray:
        """value as contiguous int64 ids within 0..limit-1 (or equal to ignore); axes None takes any shape.

        Raises TypeError unless integers, ValueError for a wrong shape, IndexError naming the first id that is out of
        range and its position.
        """
        names = axes.split() if axes is not None else None
        value = from_list(self.op, name, value)
        self._require_array(name, value, names, kind="integer")
        if value.dtype.kind not in "iu":
            raise TypeError(self._message(name, value, names, dtype="integer"))
        if names is not None:
            self._bind(name, value, names, dtype="integer")
        if value.dtype.kind == "u":  # of 64 bits the largest would become negative
            check_id_range(self.op, name, value, limit, ignore)
        ids = np.ascontiguousarray(value, dtype=np.int64).reshape(value.shape)
        check_id_range(self.op, name, ids, limit, ignore)
        return ids

    def _runs_float64(self) -> bool:
        return implementation(self._kernel) == "reference"

    def _require_array(self, name: str, value: Any, names: list[str] | None, kind: str = "float32") -> None:
        if not isinstance(value, np.ndarray):
            axes = f" [{', '.join(names)}]" if names is not None else ""
            raise TypeError(f"{self.op}: {name} must be a NumPy array, {kind}{axes}; got {type(value).__name__}")

    def _bind(self, name: str, value: np.ndarray, names: list[str], dtype: Any = None) -> None:
        sizes, shape = self.sizes, value.shape
        fits = len(shape) == len(names)
        if fits:
            for axis, size in zip(names, shape, strict=True):  # (a generator here took 3 ms of a training step)
                if sizes.get(axis, size) != size:
                    fits = False
                    break
        if not fits:
            raise ValueError(self._message(name, value, names, dtype=dtype or self.dtype))
        sizes.update(zip(names, shape, strict=True))

    def _message(self, name: str, value: np.ndarray, names: list[str] | None, dtype: Any = np.float32) -> str:
        kind = dtype if isinstance(dtype, str) else np.dtype(dtype or np.float32).name
        axes = ""
        if names is not None:
            known = (f"{axis}={self.sizes[axis]}" if axis in self.sizes else axis for axis in names)
            axes = f" [{', '.join(known)}]"
        got = value.dtype.name if value.dtype.isnative else f"{value.dtype.name} of another byte order,"
        return f"{self.op}: {name} must be {kind}{axes}; got {got} {value.shape}"


def _is_strided(value: np.ndarray) -> bool:
    """Whether kernels can walk it: its last axis is contiguous."""
    return value.size == 0 or value.strides[-1] == value.itemsize


def leading_axes(x: Any, *last: str) -> str:
    """Axis names for an array [..., *last] with as many axes as x: the leading ones are numbered."""
    leading = x.ndim - len(last) if isinstance(x, np.ndarray) else 0  # what is no array is refused by its check
    return " ".join([*(f"axis_{i}" for i in range(leading)), *last])


def as_rows(x: Any) -> Any:
    """x: [..., width] as a view [tokens, width]; None stays None."""
    if x is None or x.ndim == 2:
        return x
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def from_list(op: str, name: str, value: Any) -> Any:
    """value, or where it is a list, tuple or int, the array of it; ValueError if a list's lists differ in length."""
    if not isinstance(value, (list, tuple, int)):
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{op}: {name} must be lists of one length; got different lengths") from None
    return array if array.size else array.astype(np.int64)  # NumPy calls an empty list float64


def require_apart(op: str, name: str, value: np.ndarray | None, **others: np.ndarray | None) -> None:
    """ValueError if an array that is written shares memory with another."""
    _require_apart(op, name, value, others)


def require_all_apart(op: str, written: Mapping[str, np.ndarray | None], read: Mapping[str, np.ndarray | None]) -> None:
    """require_apart of each array that is written from all that are read and from the others that are written."""
    others = dict(read)
    for name, value in written.items():
        _require_apart(op, name, value, others)
        others[name] = value


def _require_apart(op: str, name: str, value: np.ndarray | None, others: Mapping[str, np.ndarray | None]) -> None:
    if value is None:
        return
    for other_name, other in others.items():
        # that their bounds meet is asked first: a layer's backward has a hundred such pairs
        if other is not None and np.may_share_memory(value, other) and _meet(value, other):
            raise ValueError(f"{op}: {name} is written while {other_name} is read and must not share memory with it")


def require_same_or_apart(op: str, name: str, value: np.ndarray, **others: np.ndarray | None) -> None:
    """ValueError if an array that is written as others of its shape are read shares memory with one, unless each element
    lies where its own does."""
    for other_name, other in others.items():
        if other is None or other is value or not _meet(value, other):
            continue
        if value.ctypes.data != other.ctypes.data or _steps(value) != _steps(other):
            raise ValueError(
                f"{op}: {name} is written while {other_name} is read and must be the same memory or share none with it"
            )


def _meet(value: np.ndarray, other: np.ndarray) -> bool:
    return np.may_share_memory(value, other, OVERLAP_WORK)  # type: ignore[arg-type]  # NumPy's stub knows -1 and 0 only


def _steps(array: np.ndarray) -> list[int]:
    """The strides that count: those of axes longer than 1."""
    return [stride for stride, size in zip(array.strides, array.shape, strict=True) if size > 1]


def check_id_range(op: str, name: str, ids: np.ndarray, limit: int, ignore: int | None = None) -> None:
    """IndexError with value and position of the first of ids (integers, any shape) outside 0..limit-1 and not ignore."""
    if ids.size == 0 or (ids.min() >= 0 and ids.max() < limit):
        return
    bad = (ids < 0) | (ids >= limit)
    if ignore is not None:
        bad &= ids != ignore
    if not bad.any():
        return
    position = np.unravel_index(int(bad.argmax()), ids.shape)
    index = ", ".join(str(int(axis)) for axis in position)
    raise IndexError(f"{op}: {name}[{index}] = {int(ids[position])} is out of range; expected 0..{limit - 1}")


def check_choice(op: str, name: str, value: Any, choices: Any) -> Any:
    """value if it is among choices; ValueError naming all of them otherwise."""
    try:
        known = value in choices
    except (TypeError, ValueError):  # a list cannot be looked up, an array is not equal to anything as a whole
        known = False
    if not known:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
    return value


def check_number(
    op: str, name: str, value: Any, *, at_least: float | None = None, above: float | None = None,
    below: float | None = None, at_most: float | None = None,
) -> Any:  # fmt: skip
    """value if it is a finite real number within the given bounds; TypeError or ValueError otherwise."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{op}: {name} must be a number; got {type(value).__name__}")
    if (
        math.isfinite(value)
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    ):
        return value
    bounds = ((">=", at_least), (">", above), ("<", below), ("<=", at_most))
    wanted = " and ".join(f"{sign} {limit}" for sign, limit in bounds if limit is not None)
    raise ValueError(f"{op}: {name} must be {wanted or 'finite'}; got {value}")


def check_integer(op: str, name: str, value: Any, *, at_least: int | None = None) -> int:
    """value as an int, if it is an integer of at least the given bound; TypeError or ValueError otherwise."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{op}: {name} must be an integer; got {type(value).__name__}")
    if at_least is not None and value < at_least:
        raise ValueError(f"{op}: {name} must be >= {at_least}; got {value}")
    return int(value)
