"""Other libraries, timed beside ours where they are installed: one module a peer, found by name.

A peer's module has versions() -> dict[str, str] and comparisons() -> list[Comparison]; importing it raises ImportError
where the peer is not installed. Knows nothing of how comparisons are run (fastmixer/bench/against.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

Prepare = Callable[[], Callable[[], object]]

PEERS = {"torch": 'pip install "fastmixer[peers]"'}  # name: how to get it


@dataclass(frozen=True)
class Comparison:
    """The same work in ours and in theirs (by mode: the fastest counts).

    ours, theirs: functions that build the inputs and return what is timed; target: how many times faster ours is to be.
    unit "bytes": what is timed returns bytes of memory, and the fewer the better.
    """

    group: str
    name: str
    ours: Prepare
    theirs: Mapping[str, Prepare]
    target: float
    unit: str = "seconds"


def find_peer(name: str) -> ModuleType:
    """The module of a peer. ValueError for an unknown name; ImportError telling what to install."""
    if name not in PEERS:
        raise ValueError(f"bench: --against must be one of {', '.join(PEERS)}; got {name!r}")
    try:
        return import_module(f"fastmixer.bench.peers.{name}_peer")
    except ImportError as error:
        raise ImportError(f"bench: --against {name} needs {error.name or name}: {PEERS[name]}") from error
