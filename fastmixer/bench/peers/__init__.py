"""What ours is timed beside: other libraries where they are installed, and the machine's own limits; a module each.

A new peer is a line in PEERS and a module with versions() -> dict[str, str] and comparisons() -> list[Comparison]; importing
it raises ImportError where the peer is not installed. Nothing is built before a Comparison's functions are called.
Knows nothing of how comparisons are run (fastmixer/bench/against.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType

Prepare = Callable[[], Callable[[], object]]


@dataclass(frozen=True)
class Peer:
    """module: in this package; install: how to get it; environment: variables that both sides must start with, so that
    the peer is measured in a process of its own. is_engine: it writes text; its module has versions() and an Engine
    (fastmixer/bench/inference.py compares them)."""

    module: str
    install: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    is_engine: bool = False


AVX2 = {"FASTMIXER_KERNELS": "native", "FASTMIXER_ISA": "x86_64_v3", "OPENBLAS_CORETYPE": "Haswell"}

PEERS = {
    "torch": Peer("torch_peer", 'pip install "fastmixer[peers]"'),
    "openblas-avx2": Peer("openblas_avx2", "install NumPy's wheel for Linux: pip install numpy", AVX2),
    "machine": Peer("machine"),
    "numba": Peer("numba_step"),
    "llama.cpp": Peer("llama_peer", "pip install xllamacpp", is_engine=True),
    "openvino": Peer("openvino_peer", "pip install openvino-genai", is_engine=True),
}


@dataclass(frozen=True)
class Comparison:
    """The same work in ours and in theirs (by mode: the fastest counts).

    ours, theirs: functions that build the inputs and return what is timed; target: how many times faster ours is to be,
    None where no number is set. unit "bytes": what is timed returns bytes of memory, and the fewer the better. share:
    theirs is a limit, so the ratio is the share of it that ours reaches.
    """

    group: str
    name: str
    ours: Prepare
    theirs: Mapping[str, Prepare]
    target: float | None
    unit: str = "seconds"
    share: bool = False


def find_peer(name: str) -> ModuleType:
    """The module of a peer. ValueError for an unknown name; ImportError telling what to install."""
    if name not in PEERS:
        raise _unknown(name)
    try:
        return import_module(f"fastmixer.bench.peers.{PEERS[name].module}")
    except ImportError as error:
        raise ImportError(f"bench: --against {name} needs {error.name or name}: {PEERS[name].install}") from error


def peer_names(text: str) -> list[str]:
    """The names of a comma list, each once; "all": every one that is known but the
    engines, which are compared apart. ValueError for an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip()] or [text]
    for name in names:
        if name not in PEERS and name != "all":
            raise _unknown(name)
    return list(dict.fromkeys(known for name in names for known in (_all() if name == "all" else [name])))


def _unknown(name: str) -> ValueError:
    return ValueError(f"bench: --against must be of {', '.join(PEERS)}, or all; got {name!r}")


def _all() -> list[str]:
    return [name for name, peer in PEERS.items() if not peer.is_engine]
