"""Comparisons in a process of their own, for peers whose environment variables must stand before anything is imported.

The process prints one line of JSON for what is compared against, then one for each comparison that is done.
"""

import json
import sys
from collections.abc import Iterator

from fastmixer.bench import against
from fastmixer.bench.against import Outcome
from fastmixer.bench.child import Child
from fastmixer.bench.peers import PEERS, Comparison, find_peer
from fastmixer.kernels.threads import get_threads, set_threads


def run_isolated(
    name: str, comparisons: list[Comparison], rounds: int, groups: tuple[str, ...] = ()
) -> tuple[dict[str, str], Iterator[Outcome]]:
    """(versions, outcomes as they come) of a peer in its own environment, on as many threads as here.

    comparisons: those of the peer in these groups (all if none is named), in its order. ChildProcessError with its last
    line if the process fails.
    """
    threads = str(get_threads())
    environment = {**PEERS[name].environment, "OPENBLAS_NUM_THREADS": threads}
    arguments = [name, str(rounds), threads, *groups]
    child = Child(f"--against {name}", "fastmixer.bench.isolated", arguments, environment)
    return child.answer(), _outcomes(child, comparisons)


def _outcomes(child: Child, comparisons: list[Comparison]) -> Iterator[Outcome]:
    try:
        for comparison in comparisons:
            found = child.answer()
            yield Outcome(comparison, found["values"], found["spread"])
    finally:
        child.close()


def main(name: str, rounds: str, threads: str, *groups: str) -> None:
    """What the process does."""
    set_threads(int(threads))
    module = find_peer(name)
    print(json.dumps(module.versions()), flush=True)
    selected = [one for one in module.comparisons() if not groups or one.group in groups]
    for outcome in against.run(selected, int(rounds)):
        print(json.dumps({"values": outcome.values, "spread": outcome.spread}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
