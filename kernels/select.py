"""The whole dispatch: which implementation of an op runs, and why.

FASTMIXER_KERNELS=auto|native|jit|reference and FASTMIXER_ISA=<level> force a choice. `auto` takes the best native
level that was built and can run here, else jit. It passes over what is absent, never over what is broken: a module
that exists and fails to import raises. Knows nothing of what the ops do.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from fastmixer.kernels.cpu import runnable_levels
from fastmixer.kernels.levels import LEVELS, level_for

RANKS = ("auto", "native", "jit", "reference")

_forced: str | None = None  # an implementation name set by `use_kernels`; the environment decides otherwise
_chosen: dict[tuple[str, str | None], ModuleType] = {}
_observer: Callable[[str, ModuleType], Any] | None = None


def kernels(op: str) -> ModuleType:
    """The module whose functions run for this op, e.g. kernels("attention").attention_forward(...)."""
    key = (op, _forced)
    if key not in _chosen:
        _chosen[key] = kernel_module(op, _forced_for(op) if _forced else _implementation_from_environment(op))
    return _chosen[key] if _observer is None else _observer(op, _chosen[key])


def implementation(op: str) -> str:
    """The name of what `kernels(op)` runs: "reference", "jit" or "native-<level>"."""
    name = kernels(op).__name__.rsplit(".", 1)[-1]
    return name.replace("native_", "native-", 1)


def kernel_module(op: str, implementation: str) -> ModuleType:
    """The module of one implementation by name: "reference", "jit" or "native-<level>"; ImportError if absent."""
    return import_module(f"fastmixer.kernels.{op}.{implementation.replace('-', '_')}")


def native_levels(op: str) -> tuple[str, ...]:
    """Levels of this op that were built and can run here, best first."""
    return tuple(level for level in runnable_levels() if _is_built(op, level))


def implementations(op: str) -> tuple[str, ...]:
    """All that can run here: "reference", "jit", and each native level, e.g. "native-x86_64_v4"."""
    return ("reference", "jit", *(f"native-{level}" for level in native_levels(op)))


@contextmanager
def use_kernels(implementation: str) -> Iterator[None]:
    """Force one implementation for every op inside a `with` block (tests and benchmarks; not for several threads). An op
    without code of its own at a native level (levels.py) runs as at the one beneath."""
    global _forced
    before, _forced = _forced, implementation
    try:
        yield
    finally:
        _forced = before


def forced_kernels() -> str | None:
    """What use_kernels forces here, if anything."""
    return _forced


@contextmanager
def observed(observer: Callable[[str, ModuleType], Any]) -> Iterator[None]:
    """Inside a `with` block kernels(op) gives observer(op, module) instead (fastmixer/ops/profile.py times the calls)."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def _forced_for(op: str) -> str:
    """What is forced for every op, as this op has it: the same code may serve two levels."""
    assert _forced is not None
    kind, _, level = _forced.partition("-")
    return f"{kind}-{level_for(op, level)}" if level else kind


def _implementation_from_environment(op: str) -> str:
    rank = os.environ.get("FASTMIXER_KERNELS", "auto")
    level = os.environ.get("FASTMIXER_ISA", "")
    if rank not in RANKS:
        raise ValueError(f"FASTMIXER_KERNELS must be one of {', '.join(RANKS)}; got {rank!r}")
    if level and level not in LEVELS:
        raise ValueError(f"FASTMIXER_ISA must be one of {', '.join(LEVELS)}; got {level!r}")
    if rank in ("jit", "reference"):
        return rank
    levels = native_levels(op)
    if level:
        own = level_for(op, level)
        if own not in levels or level not in runnable_levels():
            raise ImportError(
                f"FASTMIXER_ISA={level} is not available for {op}; "
                f"built and runnable here: {', '.join(levels) or 'none'}"
            )
        return f"native-{own}"
    if levels:
        return f"native-{levels[0]}"
    if rank == "native":
        raise ImportError(f"FASTMIXER_KERNELS=native, but no native kernel of {op} was built for this processor")
    _warn_once_about_missing_native()
    return "jit"


def _is_built(op: str, level: str) -> bool:
    return find_spec(f"fastmixer.kernels.{op}.native_{level}") is not None


_warned = False


def _warn_once_about_missing_native() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "fastmixer runs on Numba, several times slower: its native kernels were not built (no C compiler when it "
            "was installed). Install gcc or clang and reinstall fastmixer; FASTMIXER_KERNELS=jit silences this.",
            RuntimeWarning,
            stacklevel=2,
        )
