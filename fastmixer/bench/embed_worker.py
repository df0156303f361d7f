"""Our sentence model as an engine of inference_worker.py's processes, asked with texts."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np


class Engine:
    """fm.load of an encoder's folder. weights: how its matrices are kept."""

    def __init__(self, path: str, threads: int, *, weights: str):
        from fastmixer.kernels.threads import set_threads
        from fastmixer.opening import load

        set_threads(threads)
        self.model: Any = load(path, weights=weights, progress=False)

    def about(self) -> dict[str, Any]:
        """The kernels that run, and how the weights are kept."""
        from fastmixer.kernels.select import implementation

        kinds = sorted(set(self.model.encoder.kinds.values()))
        return {"versions": {"kernels": implementation("encoder")}, "ran": "+".join(kinds)}

    def run(self, texts: list[str], batch: int = 0, repeats: int = 1, vectors: bool = False) -> dict[str, Any]:
        """Embed the texts; how they are put together is the model's own choice, whatever batch says."""
        return timed(lambda: self.model.embed(texts, show_progress=False), repeats, vectors)


def timed(embed: Callable[[], np.ndarray], repeats: int, vectors: bool) -> dict[str, Any]:
    """The median of the seconds of so many calls, and if asked for, what came out: [texts, dim] as lists."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = embed()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), **({"vectors": found.tolist()} if vectors else {})}
