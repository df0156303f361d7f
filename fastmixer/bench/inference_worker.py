"""An engine in a process of its own, asked by lines of JSON: no engine disturbs another, or counts its memory.

Ours is here; what the others are is in fastmixer/bench/peers. The process says how it opened the model as soon as it has,
then answers each job, arguments of the engine's run, with what it measured.
"""

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from fastmixer.bench.child import Child

ROLLUP = Path("/proc/self/smaps_rollup")
OURS, OUR_EMBEDDER = "ours", "our embedder"
OUR_MODULES = {OURS: "inference_worker", OUR_EMBEDDER: "embed_worker"}
FIRST_JOB = {"prompts": [[10, 11, 12, 13, 14, 15, 16, 17]], "new_tokens": 1}


class Engine:
    """fm.load, and the time that passes in its native calls."""

    def __init__(self, path: str, threads: int, *, cache: str = "bfloat16", cache_tokens: int | None = None):
        from fastmixer.kernels.threads import set_threads
        from fastmixer.opening import load

        set_threads(threads)
        self.model = load(path, cache=cache, cache_tokens=cache_tokens, progress=False)
        self.calls = _TimedCalls(self.model.decoder._decoder)
        self.model.decoder._decoder = self.calls

    def about(self) -> dict[str, Any]:
        """The kernels that run, and what a token has to read and to multiply."""
        from fastmixer.kernels.select import implementation

        decoder = self.model.decoder
        spec = decoder.spec
        maps = [
            linear.weight.outputs * linear.weight.inputs
            for layer in spec.layers
            for linear in (layer.q, layer.k, layer.v, layer.output, layer.gate, layer.up, layer.down)
            if linear is not None
        ]
        table = 0 if spec.embedding is spec.head.weight else spec.embedding.nbytes
        cache = sum(
            decoder.page_bytes(group, self.model.scheduler.cache_dtype) for group in range(len(decoder.windows))
        )
        return {
            "versions": {"kernels": implementation("decoder")},
            "weight_bytes": decoder.nbytes - table,
            "cache_bytes": cache / 64,
            "operations": 2 * sum(maps),
            # a decoder's products of many rows of 4- and 8-bit weights (kernels/decoder)
            "prompts_in": "bfloat16" if implementation("decoder").endswith("_amx") else "int8",
        }

    def run(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Read the prompts and write so many tokens of each, greedily."""
        self.calls.seconds.clear()
        start = time.perf_counter()
        options = {"max_new_tokens": new_tokens, "temperature": 0.0, "ignore_eos": True, "return_details": True}
        details = self.model.generate(prompts, **options)
        found = {
            "seconds": time.perf_counter() - start,
            "told_seconds": max(one.prefill_seconds + one.decode_seconds for one in details),
            "tokens": details[0].tokens,
            "text": details[0].text,
            "reused": details[0].reused_tokens,
            "prefill": sum(one.prompt_tokens - one.reused_tokens for one in details)
            / max(one.prefill_seconds for one in details),
        }
        if new_tokens > 1:
            decode = max(one.decode_seconds for one in details)
            found["decode"] = len(details) * (new_tokens - 1) / decode
            found["python_share"] = 1 - sum(self.calls.seconds[1 - new_tokens :]) / decode
        return found


class _TimedCalls:
    """A kernel's decoder whose calls are timed."""

    def __init__(self, inner: Any):
        self.inner = inner
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def forward(self, *arguments: Any) -> None:
        start = time.perf_counter()
        self.inner.forward(*arguments)
        self.seconds.append(time.perf_counter() - start)


def resident() -> dict[str, int]:
    """Bytes of this process in memory now: all, and of them those that no file stands behind; nothing where the system does
    not tell."""
    if not ROLLUP.exists():
        return {}
    fields = dict(line.split(":", 1) for line in ROLLUP.read_text().splitlines()[1:])
    return {name: int(fields[key].split()[0]) * 1024 for name, key in (("all", "Rss"), ("anonymous", "Anonymous"))}


class Worker:
    """The process of one engine, seen from outside. engine: one of ours or a peer's module; first: its first job, done at
    once; options: of its Engine.

    opened: what it said when it had opened the model and done that; seconds: from starting the process until then.
    ChildProcessError with its last line if it fails.
    """

    def __init__(
        self, engine: str, path: Path, threads: int, level: str = "", first: dict[str, Any] = FIRST_JOB, **options: Any
    ):
        asked = {"engine": engine, "path": str(path), "threads": threads, "first": first, "options": options}
        environment = {"FASTMIXER_THREADS": str(threads)}
        if level:
            environment |= {"FASTMIXER_KERNELS": "native", "FASTMIXER_ISA": level}
        start = time.perf_counter()
        self._child = Child(engine, "fastmixer.bench.inference_worker", [json.dumps(asked)], environment)
        self.opened = self._child.answer()
        self.seconds = time.perf_counter() - start

    def run(self, **job: Any) -> dict[str, Any]:
        """What the engine measured of this job."""
        return self._child.ask(job)

    def close(self) -> None:
        """End the process."""
        self._child.close()


def main(text: str) -> None:
    """What the process does. What engines print goes to the errors."""
    asked = json.loads(text)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import numpy  # noqa: F401  every engine here needs it

    start = time.perf_counter()
    ours = OUR_MODULES.get(asked["engine"])
    make: Any = import_module("fastmixer.bench." + (ours or f"peers.{asked['engine']}")).Engine
    if ours:
        import fastmixer.opening  # noqa: F401
    imported, before = time.perf_counter(), resident()
    engine = make(asked["path"], asked["threads"], **asked["options"])
    opened, after = time.perf_counter(), resident()
    engine.run(**asked["first"])
    said = {
        "import_seconds": imported - start,
        "open_seconds": opened - imported,
        "first_token_seconds": time.perf_counter() - imported,
        "before": before, "after": after, **engine.about(),
    }  # fmt: skip
    print(json.dumps(said), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(engine.run(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
