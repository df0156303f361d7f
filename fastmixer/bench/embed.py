"""Sentence embeddings beside other engines: all-MiniLM-L6-v2, each engine in a process of its own, round by round in turn.

Knows which texts are embedded, by whom, and what ours has to reach; embed_worker.py is ours, peers/embed_*.py are the
others, embed_table.py shows what came out.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from fastmixer.bench.inference import SETTLE_SECONDS, Row
from fastmixer.bench.inference_worker import OUR_EMBEDDER, Worker
from fastmixer.bench.model_files import MINILM, cache_folder, cached_folder
from fastmixer.bench.peers.embed_onnx import GRAPHS, onnx_files
from fastmixer.embed.sentence_tokenizer import SentenceTokenizer
from fastmixer.kernels.peak import probe_flops
from fastmixer.kernels.threads import get_threads
from fastmixer.model.encoder_config import EncoderConfig
from fastmixer.ops.bfloat16 import is_fast
from fastmixer.text.assets import alice_text
from fastmixer.weights.encoder_folder import open_encoder

ROUNDS = 5
SHORT_TEXTS, SHORT_WORDS = 256, (5, 40)
LONG_TEXTS, LONG_TOKENS = 64, (200, 256)
SHORT, ONE, LONG = f"{SHORT_TEXTS} short sentences", "one sentence", f"{LONG_TEXTS} long texts"
ONE_REPEATS = 20  # calls a round, of which the median counts: one is over in milliseconds
BATCHES = {SHORT: (8, 16, 32, 64), ONE: (1,), LONG: (8, 32)}  # that peers may choose from
STILL_IN = 1.25  # a peer that took so many times the best one's time while batches were chosen is left out
FAR_OUT = 3.0  # and so many times: of all that follows, too
LONG_RUN, TOO_LONG = 2.0, 12.0  # seconds: what takes longer is not tried twice, or with another batch
CHECKED = 32  # sentences whose vectors are compared
PRECISIONS = ("int8", "bfloat16", "float32")
WORDS = (
    "The bank by the river was flooded and the water came up to the door of the old house where Alice introduced Bob to "
    "Chloe at a networking event last year"
).split()

ONNXRUNTIME, OPENVINO, TORCH = "onnxruntime", "openvino", "torch"
INSTALL = 'pip install "fastmixer[peers]"'
NEEDS = {  # torch exports the ONNX files
    ONNXRUNTIME: ("onnxruntime", "onnx", "torch", "transformers"),
    OPENVINO: ("openvino", "onnxruntime", "onnx", "torch", "transformers"),
    TORCH: ("torch", "transformers", "sentence_transformers"),
}
# How many times faster ours is to be than the best of: ONNX Runtime in int8, OpenVINO in bfloat16, all in float32.
TARGETS = {
    (SHORT, "int8"): 1.4, (SHORT, "bfloat16"): 1.3, (SHORT, "float32"): 1.2,
    (ONE, "int8"): 2.5,
    (LONG, "int8"): 1.3, (LONG, "bfloat16"): 1.3, (LONG, "float32"): 1.15,
}  # fmt: skip
LOAD_TARGET = 10.0


def peers_of(text: str | None) -> tuple[str, ...]:
    """The peers of a comma list; all for "all", none for None. ValueError for an unknown name; ImportError naming what is
    not installed, and how it is."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if text is not None and not names:
        names = [text]
    names = list(dict.fromkeys(known for name in names for known in (NEEDS if name == "all" else (name,))))
    for name in names:
        if name not in NEEDS:
            raise ValueError(f"bench embed: --against must be of {', '.join(NEEDS)}, or all; got {name!r}")
        for package in NEEDS[name]:
            if find_spec(package) is None:
                raise ImportError(f"bench embed: --against {name} needs {package.replace('_', '-')}: {INSTALL}")
    return tuple(names)


# ---- the work ----


def short_sentences() -> list[str]:
    """Words drawn at random: no two runs, and no two peers, see others."""
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(*SHORT_WORDS))) for _ in range(SHORT_TEXTS)]


def long_texts(tokenizer: SentenceTokenizer) -> list[str]:
    """Pieces of Alice in Wonderland, one after another, cut between words."""
    rng, words = random.Random(0), alice_text().split()
    texts: list[str] = []
    first = 0
    while len(texts) < LONG_TEXTS:
        wanted, count, tokens = rng.randint(LONG_TOKENS[0] + 10, LONG_TOKENS[1]), 0, 0
        while tokens <= wanted:  # a word more than fits
            count += max(1, (wanted - tokens) // 3)  # no word of the text has so many pieces, with what stands around it
            tokens = _tokens_of(tokenizer, words[first : first + count])
        texts.append(" ".join(words[first : first + count - 1]))
        first += count - 1
    return texts


def _tokens_of(tokenizer: SentenceTokenizer, words: list[str]) -> int:
    encoded = tokenizer.encode("bench", [" ".join(words)])
    return tokenizer.max_length + 1 if encoded.cut is not None else len(encoded.ids[0])


def operations(config: EncoderConfig, lengths: list[int]) -> int:
    """Of the linear maps, and of attention's two products, for texts of so many tokens: two a multiply-add."""
    width = config.heads * config.head_dim
    maps = 4 * config.dim * width + (3 if config.gated else 2) * config.dim * config.hidden
    return config.layers * (2 * maps * sum(lengths) + 4 * width * sum(length**2 for length in lengths))


# ---- the engines ----


@dataclass
class Entrant:
    """An engine in one way of running it. engine, precision, variant: what it is called by; batch: the size that it was
    fastest with, by workload."""

    engine: str
    precision: str
    variant: str
    worker: Worker
    batch: dict[str, int] = field(default_factory=dict)
    is_out: bool = False

    def mode(self, workload: str) -> str:
        """As a table has it."""
        words = [self.engine, "" if self.precision in self.variant else self.precision, self.variant]
        batch = self.batch.get(workload)
        return " ".join(word for word in words if word) + (f", batch {batch}" if batch and workload != ONE else "")

    def run(self, texts: list[str], workload: str, **options: Any) -> dict[str, Any]:
        """The job done once."""
        return self.worker.run(texts=texts, batch=self.batch.get(workload, 1), **options)


@dataclass
class EmbedBench:
    """What a run has to do with, and what it learns by the way: versions, remarks, the best of the probes."""

    peers: tuple[str, ...] = ()
    rounds: int = ROUNDS
    threads: int = field(default_factory=get_threads)
    tell: Callable[[str], None] = lambda text: None
    versions: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        """Every row, as soon as it is there."""
        self._folder = cached_folder(MINILM)
        onnx = {ONNXRUNTIME, OPENVINO} & set(self.peers)
        self._onnx = onnx_files(self._folder, cache_folder(), self.tell) if onnx else None
        source = open_encoder(self._folder)
        tokenizer = SentenceTokenizer(self._folder, vocab=source.config.vocab, context=source.config.context, max_length=256)
        sentences = short_sentences()
        jobs = {SHORT: sentences, ONE: sentences[:1], LONG: long_texts(tokenizer)}
        lengths = {name: [len(ids) for ids in tokenizer.encode("bench", texts).ids] for name, texts in jobs.items()}
        work = {name: operations(source.config, counts) for name, counts in lengths.items()}
        self.remarks += [f"{name}: {sum(counts)} tokens, {min(counts)} to {max(counts)} a text, {work[name] / 1e9:.2f} "
                         "GFLOP" for name, counts in lengths.items()]  # fmt: skip
        entrants: list[Entrant] = []
        try:
            entrants += self._ours()
            theirs = list(self._theirs())
            entrants += theirs
            self._remark_on(entrants)
            self._agree(entrants, sentences[:CHECKED])
            for name, texts in jobs.items():
                yield from self._workload(name, texts, work[name], entrants)
        finally:
            for one in entrants:
                one.worker.close()
        yield from self._loading(sentences[0])

    # ---- who takes part ----

    def _ours(self) -> Iterator[Entrant]:
        for precision in PRECISIONS:
            yield self._entrant("ours", OUR_EMBEDDER, precision, "", {"weights": precision})

    def _theirs(self) -> Iterator[Entrant]:
        if ONNXRUNTIME in self.peers:
            for precision in ("int8", "float32"):
                for graph in GRAPHS:
                    options = {"onnx": str(self._onnx), "graph": graph, "precision": precision}
                    yield self._entrant("ONNX Runtime", "embed_onnxruntime", precision, graph, options)
        if OPENVINO in self.peers:
            for precision in ("bfloat16", "float32"):
                options = {"onnx": str(self._onnx), "precision": precision}
                yield self._entrant("OpenVINO", "embed_openvino", precision, "", options)
        if TORCH in self.peers:
            yield self._entrant("PyTorch", "embed_torch", "float32", "", {})

    def _entrant(self, engine: str, module: str, precision: str, variant: str, options: dict[str, Any]) -> Entrant:
        worker = Worker(module, self._folder, self.threads, first={"texts": ["a first text"]}, **options)
        self.versions |= worker.opened["versions"]
        return Entrant(engine, precision, variant, worker)

    def _remark_on(self, entrants: list[Entrant]) -> None:
        """What is asked for and what runs may differ: bfloat16 without instructions for it."""
        if not is_fast():
            ran = [f"{one.engine} {one.worker.opened['ran']}" for one in entrants if one.precision == "bfloat16"]
            emulated = "; OpenVINO emulates, so that its float32 counts in those rows too" if OPENVINO in self.peers else ""
            self.remarks.append(
                f"this processor has no bfloat16 instructions: asked for bfloat16, linear maps are {', '.join(ran)}, and "
                f"ours multiplies such weights in float32{emulated}"
            )

    def _agree(self, entrants: list[Entrant], texts: list[str]) -> None:
        """The least cosine of everyone's vectors with our float32's, over some sentences: whether the same work is done."""
        found = {}
        for one in entrants:
            vectors = np.array(one.worker.run(texts=texts, batch=32, vectors=True)["vectors"], np.float32)
            found[one.mode("")] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        truth = found["ours float32"]
        least = {name: float((vectors * truth).sum(axis=1).min()) for name, vectors in found.items()}
        self.remarks.append(
            f"least cosine with our float32 vectors of {len(texts)} of the short sentences: "
            + ", ".join(f"{name} {value:.5f}" for name, value in least.items() if name != "ours float32")
        )

    # ---- the comparisons ----

    def _workload(self, name: str, texts: list[str], work: int, entrants: list[Entrant]) -> Iterator[Row]:
        running = self._fit(name, texts, entrants)
        seconds: dict[str, list[float]] = {one.mode(name): [] for one in running}
        for _ in range(self.rounds):
            for precision in PRECISIONS:
                self.peaks[precision] = max(self.peaks.get(precision, 0.0), probe_flops(0.01, precision))
            for one in running:
                time.sleep(SETTLE_SECONDS)
                took = one.run(texts, name, repeats=ONE_REPEATS if name == ONE else 1)["seconds"]
                seconds[one.mode(name)].append(took)
        unit = "ms" if name == ONE else "texts/s"
        values = {
            mode: [took * 1e3 if name == ONE else len(texts) / took for took in found] for mode, found in seconds.items()
        }
        for precision in PRECISIONS:
            ours = f"ours {precision}"
            theirs = {one.mode(name): values[one.mode(name)] for one in running if _is_beside(one, precision)}
            target = TARGETS.get((name, precision)) if theirs else None
            limit = self._limit(work / statistics.median(seconds[ours]), precision)
            yield Row(f"{name}, {precision}", unit, values[ours], theirs, target, limit)

    def _fit(self, name: str, texts: list[str], entrants: list[Entrant]) -> list[Entrant]:
        """Those that take part, warm: each peer with its best batch. Of a row's peers the best counts: those that are far
        from it in all of their rows are left out."""
        running = [one for one in entrants if not one.is_out]
        took: dict[str, float] = {}
        for one in running:
            if one.engine == "ours":
                one.run(texts, name)
            else:
                one.batch[name], seconds = _best_batch(one.worker, texts, BATCHES[name])
                took[one.mode(name)] = seconds
        behind = dict.fromkeys(took, np.inf)  # how many times the best one's time, in the row where it is nearest
        for precision in PRECISIONS:
            beside = [one.mode(name) for one in running if _is_beside(one, precision)]
            best = min((took[mode] for mode in beside), default=1.0)
            behind |= {mode: min(behind[mode], took[mode] / best) for mode in beside}
        fit = []
        for one in running:
            times = behind.get(one.mode(name), 1.0)
            one.is_out = times > FAR_OUT
            if times <= STILL_IN:
                fit.append(one)
            else:
                also = ", and of what follows" if one.is_out else ""
                self.remarks.append(f"{name}: {one.mode(name)} left out{also}, at {times:.1f} times the best peer's time")
        return fit

    def _limit(self, rate: float, precision: str) -> str:
        """Operations a second beside those that the processor does from registers."""
        peak = self.peaks[precision]
        return f"{rate / 1e9:,.0f} of {peak / 1e9:,.0f} {'GOP/s' if precision == 'int8' else 'GFLOP/s'} ({rate / peak:.0%})"

    def _loading(self, text: str) -> Iterator[Row]:
        """Fresh processes, by turns: from starting one, imports and all, to the first vector; and without the imports."""
        makers: dict[str, tuple[str, dict[str, Any]]] = {"ours": (OUR_EMBEDDER, {"weights": "auto"})}
        if TORCH in self.peers:
            makers["sentence-transformers"] = ("embed_sentence_transformers", {})
        whole: dict[str, list[float]] = {name: [] for name in makers}
        inner: dict[str, list[float]] = {name: [] for name in makers}
        for turn in range(self.rounds + 1):  # in the first, files come into memory
            for name, (module, options) in makers.items():
                time.sleep(SETTLE_SECONDS)
                worker = Worker(module, self._folder, self.threads, first={"texts": [text]}, **options)
                worker.close()
                self.versions |= worker.opened["versions"]
                if turn:
                    whole[name].append(worker.seconds)
                    inner[name].append(worker.opened["first_token_seconds"])
        kept = worker.opened["ran"] if TORCH not in self.peers else ""
        for row, found, target in (
            ("fresh process to the first vector, imports included", whole, LOAD_TARGET),
            ("the same without imports", inner, None),
        ):
            ours = found.pop("ours")
            yield Row(row, "s", ours, found, target if found else None, kept)


def _best_batch(worker: Worker, texts: list[str], batches: tuple[int, ...]) -> tuple[int, float]:
    """(batch, seconds) of the fastest of two runs each, of one where that takes long."""
    times: dict[int, float] = {}
    for batch in batches:
        times[batch] = worker.run(texts=texts, batch=batch)["seconds"]
        if times[batch] > TOO_LONG:
            break
        if times[batch] <= LONG_RUN:
            times[batch] = min(times[batch], worker.run(texts=texts, batch=batch)["seconds"])
    best = min(times, key=times.__getitem__)
    return best, times[best]


def _is_beside(one: Entrant, precision: str) -> bool:
    """Whether an entrant counts in that row: a peer of that precision; and without instructions for bfloat16, which peers
    then emulate, OpenVINO's float32 beside our bfloat16 too."""
    if one.engine == "ours":
        return False
    return one.precision == precision or (
        precision == "bfloat16" and not is_fast() and (one.engine, one.precision) == ("OpenVINO", "float32")
    )
