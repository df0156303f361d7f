"""Reading prompts and writing text, beside other engines: each in a process of its own, round by round in turn.

Knows which jobs are compared and what each has to reach; inference_worker.py runs them, inference_table.py shows them.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastmixer.bench.inference_worker import OURS, Worker
from fastmixer.bench.model_files import converted
from fastmixer.kernels.peak import READ_FLOATS, probe_bandwidth, probe_flops
from fastmixer.kernels.threads import get_threads, set_threads
from fastmixer.text.assets import alice_text
from fastmixer.weights.source import open_source

ROUNDS, WARM_ROUNDS = 5, 2  # those after these count
SETTLE_SECONDS = (
    0.3  # llama.cpp's and OpenVINO's threads spin for a while after a call, on cores that the next one needs
)
PROMPT, NEW, SEQUENCES = 510, 64, 8
SHORT, LONG = 64, 4096
# Tokens that our cache holds: as many as llama.cpp's here, or just all of a round's. So what counts is written to pages that
# were written before, as theirs is: a virtual machine may take a tenth of a prompt's time to get new ones from its host.
CACHE = 1024
CACHE_OF_ROUND = LONG + 1280
AVX2 = "x86_64_v3"
SAME_TEXT = 32  # tokens of both that are compared
LLAMA, OPENVINO = "llama.cpp", "openvino"
MODULES = {LLAMA: "llama_peer", OPENVINO: "openvino_peer"}


@dataclass(frozen=True)
class Row:
    """One comparison: of the values of each round, the more the better ("tokens/s", "texts/s"), or with unit "s", "ms" or
    "MB" the fewer.

    theirs: by mode, the best counts. limit: what ours made of the machine's limit, and which.
    """

    name: str
    unit: str
    ours: list[float]
    theirs: dict[str, list[float]]
    target: float | None = None
    limit: str = ""

    @property
    def median(self) -> float:
        """Of ours."""
        return statistics.median(self.ours)

    @property
    def best(self) -> str:
        """The best of their modes."""
        pick = max if self.unit.endswith("/s") else min
        return pick(self.theirs, key=lambda mode: statistics.median(self.theirs[mode]))

    @property
    def ratio(self) -> float:
        """How many times better ours is than the best of theirs."""
        theirs = statistics.median(self.theirs[self.best])
        return self.median / theirs if self.unit.endswith("/s") else theirs / self.median

    @property
    def reached(self) -> bool:
        """Whether the target is; where none is set, nothing is missed."""
        return self.target is None or self.ratio >= self.target


@dataclass
class Bench:
    """What a run has to do with, and what it learns by the way: versions, remarks, the best of the probes."""

    path: Path
    peers: tuple[str, ...] = ()
    rounds: int = ROUNDS
    threads: int = field(default_factory=get_threads)
    versions: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    bandwidth: float = 0.0
    int8_peak: float = 0.0
    bfloat16_peak: float = 0.0

    def rows(self) -> Iterator[Row]:
        """Every row, as soon as it is there."""
        text = _text_ids(self.path)
        starts = list(dict.fromkeys(text))
        self._text, self._starts, self._memory = text, starts, np.ones(READ_FLOATS, np.float32)
        if LLAMA in self.peers:
            yield from _beside_llama(self)
            yield from _one_thread(self)
            yield from _loading(self)
        if OPENVINO in self.peers:
            yield from _beside_openvino(self)
        yield from _own(self)

    def race(self, workers: dict[str, Worker], jobs: dict[str, "Job"]) -> dict[str, list[dict[str, Any]]]:
        """What each measured in every round that counts, the machine's limits probed among them."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
        for turn in range(WARM_ROUNDS + self.rounds):
            self.int8_peak = max(self.int8_peak, probe_flops(0.01, "int8"))
            self.bfloat16_peak = max(self.bfloat16_peak, probe_flops(0.01, "bfloat16"))
            self.bandwidth = max(self.bandwidth, probe_bandwidth(self._memory))
            for name, job in jobs.items():
                time.sleep(SETTLE_SECONDS)
                prompts = job.prompts(self._text, self._starts, turn)
                answer = workers[job.worker].run(prompts=prompts, new_tokens=job.new_tokens)
                if turn >= WARM_ROUNDS:
                    found[name].append(answer)
        return found

    def start(self, engine: str, path: Path, threads: int, **options: Any) -> Worker:
        """A worker, its versions noted."""
        worker = Worker(engine, path, threads, **options)
        if not options.get("level"):
            self.versions |= worker.opened["versions"]
        return worker


@dataclass(frozen=True)
class Job:
    """So many sequences of so many tokens for a worker. fresh: each round has prompts that no earlier one began with."""

    worker: str
    prompt_tokens: int
    new_tokens: int
    sequences: int = 1
    fresh: bool = True

    def prompts(self, text: list[int], starts: list[int], turn: int) -> list[list[int]]:
        """Pieces of the text; where they are to be fresh, one of starts, all different, is the first token."""
        found = []
        for index in range(self.sequences):
            ids = text[index * self.prompt_tokens : (index + 1) * self.prompt_tokens]
            found.append([starts[turn * self.sequences + index], *ids[1:]] if self.fresh else ids)
        return found


def _text_ids(path: Path) -> list[int]:
    tokenizer = open_source(path).tokenizer
    if tokenizer is None:
        raise ValueError(f"bench: {path} has no tokenizer")
    return [int(one) for one in tokenizer.encode(alice_text())]


def _values(answers: list[dict[str, Any]], key: str) -> list[float]:
    return [answer[key] for answer in answers]


# ---- how near the machine's limits ----


def _memory_limit(bench: Bench, opened: dict[str, Any], speed: float, context: float) -> str:
    """Bytes/s that writing so many tokens a second reads: weights, and keys and values of so many tokens."""
    rate = speed * (opened["weight_bytes"] + context * opened["cache_bytes"])
    return f"{rate / 1e9:.1f} of {bench.bandwidth / 1e9:.1f} GB/s"


def _product_limit(bench: Bench, opened: dict[str, Any], speed: float, kind: str = "int8") -> str:
    """Operations/s of the layers' linear maps, over what the machine does of that kind; attention and head not counted."""
    peak = bench.bfloat16_peak if kind == "bfloat16" else bench.int8_peak
    return f"{speed * opened['operations'] / 1e9:,.0f} of {peak / 1e9:,.0f} GOP/s"


# ---- the comparisons ----


def _beside_llama(bench: Bench) -> Iterator[Row]:
    four = converted(bench.path, "Q4_0")
    kind = _type_in_name(bench.path)
    files = {kind: bench.path, "Q4_0": four}
    workers = {OURS: bench.start(OURS, bench.path, bench.threads, cache_tokens=CACHE)}
    workers["avx2"] = bench.start(OURS, bench.path, bench.threads, level=AVX2, cache_tokens=CACHE)
    modes = {f"{kind}, flash {flash}": (path, flash) for kind, path in files.items() for flash in ("on", "off")}
    try:
        for mode, (path, flash) in modes.items():
            workers[mode] = bench.start(MODULES[LLAMA], path, bench.threads, flash=flash)
        found = bench.race(workers, {name: Job(name, PROMPT, NEW) for name in workers})
    finally:
        _close(workers)
    opened, avx2 = workers[OURS].opened, workers["avx2"].opened
    for what, targets in (("decode", (2.0, 1.5)), ("prefill", (4.0, 2.0))):
        ours, held = _values(found[OURS], what), _values(found["avx2"], what)
        theirs = {mode: _values(found[mode], what) for mode in modes}
        name = f"{what} {NEW} after {PROMPT}" if what == "decode" else f"{what} {PROMPT}"

        def limit(of: dict[str, Any], values: list[float], what: str = what) -> str:
            speed = statistics.median(values)
            if what == "prefill":
                return _product_limit(bench, of, speed, of["prompts_in"])
            return _memory_limit(bench, of, speed, PROMPT + NEW / 2)

        for kind, target in zip(files, targets, strict=True):
            against = {mode: values for mode, values in theirs.items() if mode.startswith(kind)}
            yield Row(f"{name}, llama.cpp on {kind}", "tokens/s", ours, against, target, limit(opened, ours))
        # A build that goes beyond AVX2 cannot be held to it: then there is nothing to reach.
        reach = None if "AVX512" in bench.versions[LLAMA] else 1.2
        yield Row(f"{name}, ours held to AVX2", "tokens/s", held, theirs, reach, limit(avx2, held))
    bench.remarks.append(_python_share(found[OURS]))
    bench.remarks.append(_texts(found, next(iter(modes)), bench))
    bench.remarks += _clocks(found)


def _type_in_name(path: Path) -> str:
    """What stands before .gguf, as in model.Q4_1.gguf; told apart from the file that is written as Q4_0."""
    kind = Path(path.stem).suffix[1:] or "the file"
    return f"own {kind}" if kind == "Q4_0" else kind


def _python_share(answers: list[dict[str, Any]]) -> str:
    share = statistics.median(_values(answers, "python_share"))
    verdict = "yes" if share < 0.05 else "NO"
    return f"Python's share of a token's time: {share:.1%} (< 5% {verdict})"


def _texts(found: dict[str, list[dict[str, Any]]], mode: str, bench: Bench) -> str:
    """Whether both wrote the same from the same file."""
    tokenizer = open_source(bench.path).tokenizer
    assert tokenizer is not None
    for turn, (ours, theirs) in enumerate(zip(found[OURS], found[mode], strict=True)):
        text = tokenizer.decode(ours["tokens"][:SAME_TEXT])
        if not theirs["text"].startswith(text):
            return (
                f"greedy text of {SAME_TEXT} tokens differs in round {turn + 1}: ours {text!r}, "
                f"llama.cpp's {theirs['text'][: len(text)]!r}"
            )
    return f"greedy text of {SAME_TEXT} tokens: the same as llama.cpp's on the same file in {len(found[OURS])} rounds"


def _clocks(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """How far what engines tell of their time is from the clock outside them."""
    ratios = {
        name: statistics.median(one["seconds"] / one["told_seconds"] for one in answers)
        for name, answers in found.items()
    }
    return [
        "time by the clock over time as told: " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
    ]


def _one_thread(bench: Bench) -> Iterator[Row]:
    threads = get_threads()
    set_threads(1)  # the probes too
    limits = bench.bandwidth, bench.int8_peak, bench.bfloat16_peak
    bench.bandwidth = bench.int8_peak = bench.bfloat16_peak = 0.0
    files = {"the same file": bench.path, "Q4_0": converted(bench.path, "Q4_0")}
    workers: dict[str, Worker] = {}
    try:
        workers[OURS] = bench.start(OURS, bench.path, 1, cache_tokens=CACHE)
        for kind, path in files.items():
            workers[kind] = bench.start(MODULES[LLAMA], path, 1)
        found = bench.race(workers, {name: Job(name, SHORT, NEW) for name in workers})
        ours = _values(found[OURS], "decode")
        limit = _memory_limit(bench, workers[OURS].opened, statistics.median(ours), SHORT + NEW / 2)
    finally:
        set_threads(threads)
        bench.bandwidth, bench.int8_peak, bench.bfloat16_peak = limits
        _close(workers)
    for kind in files:
        name = f"one thread: decode {NEW} after {SHORT}, llama.cpp on {kind}"
        yield Row(name, "tokens/s", ours, {"flash auto": _values(found[kind], "decode")}, 1.7, limit)


def _loading(bench: Bench) -> Iterator[Row]:
    """From a fresh process: the time to the first token, imports and start of Python not counted; memory after loading."""
    makers: dict[str, Callable[[], Worker]] = {
        OURS: lambda: bench.start(OURS, bench.path, bench.threads),
        "no warmup": lambda: bench.start(MODULES[LLAMA], bench.path, bench.threads, warmup=False),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in makers}
    for _ in range(bench.rounds):
        for name, make in makers.items():
            time.sleep(SETTLE_SECONDS)
            worker = make()
            worker.close()
            found[name].append(worker.opened)
    first = {name: _values(answers, "first_token_seconds") for name, answers in found.items()}
    yield Row("load to the first token, cached file", "s", first.pop(OURS), first, 1.0)
    with_imports = {
        name: [one["first_token_seconds"] + one["import_seconds"] for one in answers] for name, answers in found.items()
    }
    yield Row("the same with imports", "s", with_imports.pop(OURS), with_imports)
    if found[OURS][0]["after"]:
        grown = {name: [_grown(one, "all") for one in answers] for name, answers in found.items()}
        size = bench.path.stat().st_size / 2**20
        yield Row("memory after load, against the file", "MB", grown[OURS], {"file": [size]}, 1 / 1.35)
        yield Row("memory after load, llama.cpp", "MB", grown.pop(OURS), grown)
        own = [_grown(one, "anonymous") for one in found[OURS]]
        bench.remarks.append(
            f"memory after load: resident bytes over those before; of ours {statistics.median(own):.0f} MB have no file "
            "behind them, the rest are pages of files"
        )


def _grown(opened: dict[str, Any], kind: str) -> float:
    """MB that opening a model took."""
    return (opened["after"][kind] - opened["before"][kind]) / 2**20


def _beside_openvino(bench: Bench) -> Iterator[Row]:
    eight = converted(bench.path, "Q8_0")
    workers: dict[str, Worker] = {}
    try:
        workers[OURS] = bench.start(OURS, eight, bench.threads, cache_tokens=CACHE)
        for name, options in (("as it chooses", {}), ("bf16", {"precision": "bf16"})):
            workers[name] = bench.start(MODULES[OPENVINO], eight, bench.threads, **options)
        found = bench.race(workers, {name: Job(name, PROMPT, 2) for name in workers})
        opened = workers[OURS].opened
    finally:
        _close(workers)
    values = {name: _values(answers, "prefill") for name, answers in found.items()}
    ours = values.pop(OURS)
    limit = _product_limit(bench, opened, statistics.median(ours), opened["prompts_in"])
    yield Row(f"prefill {PROMPT}, Q8_0, OpenVINO GenAI", "tokens/s", ours, values, 1.3, limit)


def _own(bench: Bench) -> Iterator[Row]:
    """Ours against ours: sequences together, and long context."""
    workers: dict[str, Worker] = {}
    jobs = {
        "one": Job("bfloat16", SHORT, NEW),
        "together": Job("bfloat16", SHORT, NEW, SEQUENCES),
        **{
            f"{cache} {context}": Job(cache, context - NEW // 2, NEW, fresh=False)
            for cache in ("bfloat16", "int8")
            for context in (SHORT, LONG)
        },
    }
    try:
        for cache in ("bfloat16", "int8"):
            workers[cache] = bench.start(OURS, bench.path, bench.threads, cache=cache, cache_tokens=CACHE_OF_ROUND)
        found = bench.race(workers, jobs)
        opened = {name: worker.opened for name, worker in workers.items()}
    finally:
        _close(workers)
    speed = {name: _values(answers, "decode") for name, answers in found.items()}
    limit = _memory_limit(bench, opened["bfloat16"], statistics.median(speed["one"]), SHORT + NEW / 2)
    bench.remarks.append(f"one sequence alone, decode {NEW} after {SHORT}: {limit}")
    limit = _product_limit(bench, opened["bfloat16"], statistics.median(speed["together"]))
    name = f"decode of {SEQUENCES} sequences together, one alone"
    yield Row(name, "tokens/s", speed["together"], {"one": speed["one"]}, 3.0, limit)
    for cache, target in (("bfloat16", 0.45), ("int8", 0.6)):
        long = speed[f"{cache} {LONG}"]
        limit = _memory_limit(bench, opened[cache], statistics.median(long), LONG)
        name = f"decode at {LONG:,} tokens of context, {cache} cache"
        yield Row(name, "tokens/s", long, {f"at {SHORT}": speed[f"{cache} {SHORT}"]}, target, limit)


def _close(workers: dict[str, Worker]) -> None:
    for worker in workers.values():
        worker.close()
