"""An encoder as what people ask of it: vectors for texts, and scores for pairs of them.

Texts are tokenized in parallel, the next ones while the encoder works, packed into batches without padding, longest
first, and what comes out stands in the caller's order. Knows nothing of files but their loaders.
"""

import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmixer.embed.auto_weights import Choice, fastest_accurate
from fastmixer.embed.batches import longest_first
from fastmixer.embed.decoder_states import DecoderStates
from fastmixer.embed.pooling import DenseLayer, pool, unit_length
from fastmixer.embed.sentence_tokenizer import Encoded, Pair, SentenceTokenizer
from fastmixer.embed.vector_file import VectorFile
from fastmixer.model.config import ModelConfig
from fastmixer.model.decoder import WEIGHTS, Decoder
from fastmixer.model.encoder import Encoder
from fastmixer.model.encoder_config import EncoderConfig
from fastmixer.ops.checks import check_choice, check_integer
from fastmixer.progress import PROGRESS_AFTER, LateBar
from fastmixer.text.files import lone_surrogate
from fastmixer.text.tokenizer import Tokenizer
from fastmixer.weights.encoder_folder import is_encoder_folder, is_sentence_folder, open_encoder
from fastmixer.weights.encoder_recipe import PROMPTS_FOR, SentenceRecipe, read_recipe, transformer_folder
from fastmixer.weights.hf_folder import open_folder

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

BATCH_TOKENS = 8192  # of one call of the encoder
WINDOW = 2048  # texts tokenized at once
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Ranked:
    """One of rerank's texts: its place among them, and its score."""

    index: int
    score: float


class SentenceModel:
    """What load_sentence_model opens: an encoder, or a decoder's states; its tokenizer; and how vectors are made of its
    hidden states. score_activation: what a cross-encoder's single output passes through; choice: how weights="auto" was
    decided, if it was.

    dim: of its vectors; max_length: tokens of a text; prompts: what may stand before a text, by name. One object may be
    used from several threads.
    """

    def __init__(
        self, encoder: Encoder | DecoderStates, tokenizer: SentenceTokenizer, recipe: SentenceRecipe, name: str, *,
        score_activation: str = "sigmoid", choice: Choice | None = None,
    ):  # fmt: skip
        self.encoder, self.tokenizer, self.recipe, self.name = encoder, tokenizer, recipe, name
        self.config = encoder.config
        self._head, self._has_types = None, False
        if isinstance(encoder, Encoder):
            self._head, self._has_types = encoder.config.head, encoder.config.token_types > 1
        self._score_activation, self._choice = score_activation, choice
        self._dense = [DenseLayer(stage) for stage in recipe.dense]
        self.dim = recipe.vector_dim(self.config.dim)
        self.max_length = self.tokenizer.max_length
        self.prompts: dict[str, str] = dict(recipe.prompts)
        self._has_warned = False
        self._origin: tuple[Any, ...] | None = None  # what load_sentence_model was given

    def __deepcopy__(self, memo: Any) -> "SentenceModel":
        """Itself: nothing of it changes, and its weights are large. (scikit-learn copies parameters of what it clones.)"""
        return self

    def __reduce__(self) -> Any:
        """A pickle holds the place of the files, not the weights."""
        if self._origin is None:
            raise TypeError(f"{self.name} was not opened from a folder of its own, so it cannot be pickled")
        return _reopen, self._origin

    def __repr__(self) -> str:
        return f"SentenceModel({self.name!r}, dim={self.dim}, weights={self.encoder.weights!r})"

    # ---- vectors ----

    def prompt_for(self, use: str) -> str:
        """What embed(texts, prompt=...) should put before texts of one use: "query" or "document" (what queries look for).
        The model's own prompt for it; "" where it has none, even if it has a default prompt."""
        check_choice("prompt_for", "use", use, tuple(PROMPTS_FOR))
        return self.recipe.prompt_for(use) or ""

    def require_vectors(self, op: str) -> None:
        """ValueError, of this op, unless the model makes vectors."""
        if self._head is not None:
            raise ValueError(f"{op}: {self.name} is a cross-encoder or classifier, which gives no vectors; use rerank")

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        batch_tokens: int = BATCH_TOKENS,
        normalize: bool = True,
        show_progress: bool | None = None,
        dtype: "DTypeLike" = "float32",
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = True,
    ) -> np.ndarray:
        """The vector of each text: float32 [n, dim], in order; of a single string float32 [dim].

        batch_tokens: of one call of the encoder, at most (a longer text goes alone). normalize: to unit length; False:
        as pooled, whatever the model's folder asks for. show_progress: a bar (None: once it takes over a second).
        dtype: of the result, "float32" or "float16". prompt: what is put before each text (see prompt_for); prompt_name: one
        of self.prompts (neither: the model's default, if it has one; prompt="" for none). truncate: cut texts of more than
        max_length tokens, with one warning; False: refuse them. Raises TypeError or ValueError that names the text.
        """
        self.require_vectors("embed")
        dtype = _dtype("embed", dtype)
        batch_tokens = check_integer("embed", "batch_tokens", batch_tokens, at_least=1)
        before = self._prompt("embed", prompt, prompt_name)
        listed: list[str] = [texts] if isinstance(texts, str) else _as_list("embed", texts)
        self._check("embed", listed, 0)
        if isinstance(texts, str) or (len(listed) == 1 and not show_progress):
            # the short way: a bar, windows and batches take 1 % of MiniLM's sentence
            encoded = self._encode("embed", listed, 0, before, truncate)
            self._warn_of_cut("embed", encoded)
            starts = np.array([0, len(encoded.ids[0])])
            hidden = self.encoder.forward(encoded.ids[0], starts, encoded.types[0] if self._has_types else None)
            vectors = self._vectors(hidden, starts, encoded.skip, normalize).astype(dtype, copy=False)
            return vectors[0] if isinstance(texts, str) else vectors
        out = np.empty((len(listed), self.dim), dtype)
        with _bar(len(listed), show_progress) as bar:
            for encoded in self._windows("embed", listed, before, truncate):
                self._warn_of_cut("embed", encoded)
                rows = slice(encoded.first, encoded.first + len(encoded.ids))
                out[rows] = self._embed_window(encoded, batch_tokens, normalize, bar)
        return out

    def embed_to(
        self,
        path: str | Path,
        texts: Iterable[str],
        *,
        batch_tokens: int = BATCH_TOKENS,
        normalize: bool = True,
        show_progress: bool | None = None,
        dtype: "DTypeLike" = "float32",
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = True,
    ) -> np.ndarray:
        """The vectors of a stream of texts of any length, written to a .npy file as they come: its array [n, dim],
        memory-mapped and read-only. Neither texts nor vectors are ever all in memory; see embed for the options.

        path is written once all is well; an error leaves what stood there. Raises as embed does; OSError.
        """
        self.require_vectors("embed_to")
        dtype = _dtype("embed_to", dtype)
        batch_tokens = check_integer("embed_to", "batch_tokens", batch_tokens, at_least=1)
        before = self._prompt("embed_to", prompt, prompt_name)
        _need_texts("embed_to", texts)
        count = length_hint(texts) or None
        with VectorFile(path, self.dim, dtype) as file, _bar(count, show_progress) as bar:
            for encoded in self._windows("embed_to", texts, before, truncate):
                self._warn_of_cut("embed_to", encoded)
                file.append(self._embed_window(encoded, batch_tokens, normalize, bar))
        return np.load(path, mmap_mode="r")

    # ---- pairs ----

    def score(
        self,
        query: str,
        texts: Iterable[str],
        *,
        batch_tokens: int = BATCH_TOKENS,
        show_progress: bool | None = None,
        truncate: bool = True,
    ) -> np.ndarray:
        """How well each text answers query, by a cross-encoder: float32 [n], in order. 0 to 1, unless the model's folder
        says that its output is taken as it is. Raises TypeError, or ValueError, also for a model without such a head."""
        head = self._head
        if head is None:
            raise ValueError(f"rerank: {self.name} is no cross-encoder; use embed, and the products of its vectors")
        if head.classes != 1:
            raise ValueError(f"rerank: the model must have one output; {self.name} has {head.classes} classes")
        batch_tokens = check_integer("rerank", "batch_tokens", batch_tokens, at_least=1)
        if not isinstance(query, str) or lone_surrogate(query) is not None:
            raise TypeError(f"rerank: query must be a string of UTF-8 text; got {type(query).__name__} {query!r:.40}")
        listed = _as_list("rerank", texts)
        self._check("rerank", listed, 0)
        query = self._prompt("rerank", None, None) + query
        encoder, scores = self.encoder, np.empty(len(listed), np.float32)
        assert isinstance(encoder, Encoder)
        with _bar(len(listed), show_progress) as bar:
            for first in range(0, len(listed), WINDOW):
                pairs: list[Pair] = [(query, text) for text in listed[first : first + WINDOW]]
                encoded = self.tokenizer.encode("rerank", pairs, first, truncate=truncate)
                self._warn_of_cut("rerank", encoded)
                for places, hidden, starts in self._run(encoded, batch_tokens):
                    logits = encoder.classify(pool(hidden, starts, head.pooling))[:, 0]
                    scores[first + places] = logits
                    bar.update(len(places))
        return _sigmoid(scores) if self._score_activation == "sigmoid" else scores

    def rerank(self, query: str, texts: Iterable[str], *, top_k: int | None = None, **options: Any) -> list[Ranked]:
        """The texts, best answer to query first, or the top_k best: (index among texts, score). See score for options."""
        top_k = None if top_k is None else check_integer("rerank", "top_k", top_k, at_least=1)
        scores = self.score(query, texts, **options)
        return [Ranked(int(index), float(scores[index])) for index in np.argsort(-scores, kind="stable")[:top_k]]

    # ---- the model itself ----

    def info(self) -> dict[str, Any]:
        """What the model is made of, how its weights are kept, the memory they take (bytes), and how it makes vectors. Of
        weights="auto" in an encoder also what was tried: the least cosine that each kind kept of float32's vectors."""
        choice = self._choice
        kinds: dict[str, int] = {}
        for kind in self.encoder.kinds.values():
            kinds[kind] = kinds.get(kind, 0) + 1
        return {
            "name": self.name,
            "architecture": asdict(self.config),
            "weights": {
                "asked": self.encoder.weights if choice is None else "auto", "matrices": kinds, "bytes": self.encoder.nbytes,
                **({} if choice is None else {"chosen": choice.kind, "tried": dict(choice.tried)}),
            },
            "dim": self.dim,
            "max_length": self.max_length,
            "pooling": None if self._head else self.recipe.pooling,
            "prompts": dict(self.prompts),
        }

    # ---- from texts to tokens ----

    def _windows(self, op: str, texts: Iterable[str], before: str, truncate: bool) -> Iterator[Encoded]:
        """So many texts after another, the next ones tokenized meanwhile."""
        if isinstance(texts, list) and len(texts) <= WINDOW:
            if texts:
                yield self._encode(op, texts, 0, before, truncate)
            return
        source, first = iter(texts), 0
        with ThreadPoolExecutor(1, "fastmixer-tokenizer") as worker:
            waiting: Future[Encoded] | None = None
            while window := list(islice(source, WINDOW)):
                self._check(op, window, first)
                submitted = worker.submit(self._encode, op, window, first, before, truncate)
                first += len(window)
                if waiting is not None:
                    yield waiting.result()
                waiting = submitted
            if waiting is not None:
                yield waiting.result()

    def _encode(self, op: str, texts: list[str], first: int, before: str, truncate: bool) -> Encoded:
        if not before:
            return self.tokenizer.encode(op, texts, first, truncate=truncate)
        encoded = self.tokenizer.encode(op, [before + text for text in texts], first, truncate=truncate)
        if self.recipe.pools_prompt:
            return encoded
        skip = self.tokenizer.prompt_tokens(before)
        for index, ids in enumerate(encoded.ids, first):
            if len(ids) <= skip:
                raise ValueError(f"{op}: texts[{index}] has no tokens behind its prompt, whose tokens are not pooled")
        return encoded._replace(skip=skip)

    def _warn_of_cut(self, op: str, encoded: Encoded) -> None:
        """Once in this model's life."""
        if encoded.cut is not None and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{op}: texts[{encoded.cut}] is longer than {self.max_length} tokens, the model's limit; it is cut, as "
                "others will be without a word (truncate=False refuses them)",
                UserWarning,
                stacklevel=3,
            )

    def _check(self, op: str, texts: list[Any], first: int) -> None:
        for index, text in enumerate(texts, first):
            if not isinstance(text, str):
                raise TypeError(f"{op}: texts[{index}] must be a string; got {type(text).__name__}")
            place = lone_surrogate(text)
            if place is not None:
                raise ValueError(
                    f"{op}: character {place} of texts[{index}] is {text[place]!r}, half a surrogate pair; no text holds "
                    "that alone"
                )

    def _prompt(self, op: str, prompt: str | None, prompt_name: str | None) -> str:
        if prompt is not None:
            if prompt_name is not None:
                raise ValueError(f"{op}: give prompt or prompt_name, not both")
            if not isinstance(prompt, str):
                raise TypeError(f"{op}: prompt must be a string; got {type(prompt).__name__}")
            return prompt
        name = self.recipe.default_prompt if prompt_name is None else prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none: this model has no prompts"
            raise ValueError(f"{op}: prompt_name must be one of {known}; got {name!r}")
        return self.prompts[name]

    # ---- from tokens to vectors ----

    def _embed_window(self, encoded: Encoded, batch_tokens: int, normalize: bool, bar: LateBar) -> np.ndarray:
        """float32 [texts, dim]."""
        vectors = np.empty((len(encoded.ids), self.dim), np.float32)
        for places, hidden, starts in self._run(encoded, batch_tokens):
            vectors[places] = self._vectors(hidden, starts, encoded.skip, normalize)
            bar.update(len(places))
        return vectors

    def _vectors(self, hidden: np.ndarray, starts: np.ndarray, skip: int, normalize: bool) -> np.ndarray:
        """float32 [sequences, dim] of hidden: float32 [tokens, config.dim], which starts cuts."""
        pooled = pool(hidden, starts, self.recipe.pooling, skip)
        for layer in self._dense:
            pooled = layer(pooled)
        pooled = pooled[:, : self.dim]
        return unit_length(pooled) if normalize else pooled

    def _run(self, encoded: Encoded, batch_tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(places among them, hidden float32 [tokens, dim], starts int64 [texts + 1]) of one batch after another."""
        lengths = np.array([len(row) for row in encoded.ids])
        for places in longest_first(lengths, batch_tokens):
            starts = np.concatenate([[0], np.cumsum(lengths[places])])
            ids = np.concatenate([encoded.ids[place] for place in places])
            types = np.concatenate([encoded.types[place] for place in places]) if self._has_types else None
            yield places, self.encoder.forward(ids, starts, types), starts


def load_sentence_model(
    path_or_name: str | Path,
    weights: str = "auto",
    *,
    context: int | None = None,
    offline: bool | None = None,
    revision: str | None = None,
    name: str | None = None,
    progress: bool = True,
    packed_cache: Path | None = None,
) -> SentenceModel:
    """The model in an encoder's folder, or of a name "org/name"; or a decoder whose folder says how its hidden states become
    vectors (modules.json). See open_encoder for what is opened and raised; of a decoder context is the longest text, and
    packed_cache where its packed weights are kept.

    weights: "float32", "bfloat16", "int8" or "int4" (see model.encoder.Encoder), or "auto": the fastest of the first three
    on this processor that keeps an encoder's vectors (embed/auto_weights.py; info() tells); of a decoder see Decoder."""
    check_choice("load", "weights", weights, WEIGHTS)
    folder = Path(path_or_name)
    if folder.is_dir() and not is_encoder_folder(folder) and is_sentence_folder(folder):
        model = _load_decoder(folder, weights, context, name or folder.resolve().name, progress, packed_cache)
    else:
        source = open_encoder(path_or_name, offline=offline, revision=revision, name=name)
        tokenizer = _tokenizer(source.path, source.config, source.recipe)
        choice: Choice | None = None
        if weights == "auto":
            encoder, choice = fastest_accurate(source, tokenizer, progress)
        else:
            encoder = Encoder(source, weights, progress=progress)
        model = SentenceModel(
            encoder, tokenizer, source.recipe, source.name, score_activation=source.score_activation, choice=choice
        )
    place = folder.resolve() if folder.is_dir() else path_or_name
    options = {"context": context, "offline": offline, "revision": revision, "name": name, "packed_cache": packed_cache}
    model._origin = (place, weights, options)
    return model


def _reopen(place: str | Path, weights: str, options: Any, *more: Any) -> SentenceModel:
    """options: a dictionary; of pickles of an earlier form they stand one after another, the context first."""
    if not isinstance(options, dict):
        options = dict(zip(("context", "offline", "revision", "name"), (options, *more), strict=False))
    return load_sentence_model(place, weights, progress=False, **options)


def _load_decoder(
    folder: Path, weights: str, context: int | None, name: str, progress: bool, packed_cache: Path | None
) -> SentenceModel:
    source = open_folder(transformer_folder(folder), context, name, body_only=True)
    recipe = read_recipe(folder, source.config.dim)
    if recipe.classifies:
        raise ValueError(f"{folder}: the classification heads of decoders are not supported, their hidden states are")
    tokenizer = _tokenizer(source.path, source.config, recipe)
    decoder = Decoder(source, weights, progress=progress, packed_cache=packed_cache)
    return SentenceModel(DecoderStates(decoder), tokenizer, recipe, name)


def sentence_model_of(decoder: Decoder, tokenizer: Tokenizer, name: str, pooling: str) -> SentenceModel:
    """Vectors from the hidden states of a language model that is open already, and shares its weights."""
    sentence_tokenizer = SentenceTokenizer.of(tokenizer, decoder.config.context)
    return SentenceModel(DecoderStates(decoder), sentence_tokenizer, SentenceRecipe(pooling=pooling), name)


def _tokenizer(folder: Path, config: EncoderConfig | ModelConfig, recipe: SentenceRecipe) -> SentenceTokenizer:
    return SentenceTokenizer(
        folder, vocab=config.vocab, context=config.context, max_length=recipe.max_length, lower_case=recipe.lower_case
    )


def _as_list(op: str, texts: Any) -> list[Any]:
    if isinstance(texts, str):
        raise TypeError(f"{op}: texts must be a list of strings; got one string")
    _need_texts(op, texts)
    return list(texts)


def _need_texts(op: str, texts: Any) -> None:
    if isinstance(texts, str | bytes | dict) or not isinstance(texts, Iterable):
        raise TypeError(f"{op}: texts must be a list of strings; got {type(texts).__name__}")
    if getattr(texts, "shape", None) == ():
        raise TypeError(f"{op}: texts must be a list of strings; got {type(texts).__name__} of shape ()")


def _dtype(op: str, dtype: Any) -> str:
    """The name of what may be given as np.dtype takes it."""
    if isinstance(dtype, str) and dtype in DTYPES:
        return dtype
    try:
        kind = None if dtype is None else np.dtype(dtype)
    except TypeError:
        kind = None
    name = kind.name if kind is not None and kind.isnative else dtype
    check_choice(op, "dtype", name, DTYPES)
    return str(name)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), of exponentials that cannot overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, np.float32(1), small) / (1 + small)


def _bar(total: int | None, show_progress: bool | None) -> LateBar:
    """A progress bar over texts; None: it shows once a second has passed."""
    after = 0.0 if show_progress else PROGRESS_AFTER
    return LateBar(total, shown=show_progress is not False, after=after, desc="embedding", unit=" texts")
