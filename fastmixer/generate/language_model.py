"""The face of an opened model: generate, stream, chat, and what it makes of a text. Prompts are judged here.

Any number of threads and coroutines may use one model; their sequences share its steps. Knows nothing of files.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmixer.generate import measure
from fastmixer.generate.options import OPTION_NAMES, Generation, Options, make_options
from fastmixer.generate.scheduler import Scheduler
from fastmixer.generate.sequence import Sequence as Written
from fastmixer.generate.stream import AsyncTextStream, TextStream, Waiter, result_of
from fastmixer.ops.checks import check_choice, check_id_range, check_integer
from fastmixer.text.chat import render_chat
from fastmixer.text.pieces import printable
from fastmixer.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from fastmixer.embed.sentence_model import SentenceModel

CHAT_TOKENS = 512  # max_new_tokens of a chat, unless it is told

Prompt = str | Sequence[int] | np.ndarray
Messages = list[dict[str, Any]]


class LanguageModel:
    """A decoder (fastmixer.model.decoder.Decoder) with its tokenizer and a cache of keys and values that its calls share.

    generation: options that its makers advise; what a call gives goes before them. cache_tokens, cache_dtype: see
    Scheduler. A prompt is text, or ids: integers [tokens]; several prompts are a list of those.
    """

    def __init__(
        self, decoder: Any, tokenizer: Tokenizer | None = None, name: str = "model",
        generation: Mapping[str, Any] | None = None, *, cache_tokens: int | None = None, cache_dtype: str = "bfloat16",
    ):  # fmt: skip
        self.decoder, self.tokenizer = decoder, tokenizer
        self.name = printable(name)  # it comes from a file, and errors show it
        self.config = decoder.config
        self.generation = {key: value for key, value in (generation or {}).items() if key in OPTION_NAMES}
        make_options(self.generation, {})
        self.scheduler = Scheduler(decoder, tokenizer, cache_tokens=cache_tokens, cache_dtype=cache_dtype)
        self.context = self.scheduler.context

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, context={self.context})"

    # ---- generate ----

    def generate(self, prompt: Prompt | Sequence[Prompt], *, return_details: bool = False, **options: Any) -> Any:
        """The text that follows a prompt, or a list of texts for a list of prompts; with n > 1, a list of n for each. As
        Generation with return_details. options: see Options."""
        sequences, shape = self._sequences(prompt, options, return_details)
        self.scheduler.start(sequences)
        try:
            for sequence in sequences:
                self.scheduler.finish(sequence)
        finally:
            self._cancel(sequences)
        return self._results(sequences, shape, return_details)

    async def agenerate(
        self, prompt: Prompt | Sequence[Prompt], *, return_details: bool = False, **options: Any
    ) -> Any:
        """generate, for coroutines: a thread makes the steps. Cancelling the task ends it."""
        sequences, shape = self._sequences(prompt, options, return_details)
        try:
            await Waiter(self.scheduler, sequences).until(lambda: all(one.is_finished for one in sequences))
        finally:
            self._cancel(sequences)
        for sequence in sequences:
            if sequence.error is not None:
                raise sequence.error
        return self._results(sequences, shape, return_details)

    def stream(self, prompt: Prompt, **options: Any) -> TextStream:
        """The text that follows a prompt, in pieces, as soon as they are certain; .details says what came."""
        return TextStream(self.scheduler, self._one_sequence(prompt, options), self._need_tokenizer("stream"))

    def astream(self, prompt: Prompt, **options: Any) -> AsyncTextStream:
        """stream, for `async for`."""
        return AsyncTextStream(self.scheduler, self._one_sequence(prompt, options), self._need_tokenizer("astream"))

    # ---- chat ----

    def chat(
        self,
        messages: Messages,
        *,
        return_details: bool = False,
        template: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """The model's answer to messages, [{"role": "user", "content": "..."}, ...]. template: what else the chat template
        asks for (tools, enable_thinking, ...), and of render_chat: continue_final_message=True goes on with a last message
        that has been begun, add_generation_prompt=False begins no answer. What it shares with the chat's last turn is not
        computed again."""
        prompt, options = self._chat_prompt(messages, template, options)
        return self.generate(prompt, return_details=return_details, **options)

    async def achat(
        self,
        messages: Messages,
        *,
        return_details: bool = False,
        template: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """chat, for coroutines."""
        prompt, options = self._chat_prompt(messages, template, options)
        return await self.agenerate(prompt, return_details=return_details, **options)

    def chat_stream(
        self, messages: Messages, *, template: Mapping[str, Any] | None = None, **options: Any
    ) -> TextStream:
        """The answer of chat, in pieces."""
        prompt, options = self._chat_prompt(messages, template, options)
        return self.stream(prompt, **options)

    def achat_stream(
        self, messages: Messages, *, template: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncTextStream:
        """chat_stream, for `async for`."""
        prompt, options = self._chat_prompt(messages, template, options)
        return self.astream(prompt, **options)

    # ---- text and numbers ----

    def tokenize(self, text: str, *, special: bool = True, begin: bool = False) -> np.ndarray:
        """The ids of text: int64 [tokens]; see Tokenizer.encode."""
        return self._need_tokenizer("tokenize").encode(text, special=special, begin=begin)

    def detokenize(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids; see Tokenizer.decode."""
        return self._need_tokenizer("detokenize").decode(ids)

    def logits(self, prompt: Prompt | np.ndarray) -> np.ndarray:
        """float32 [tokens, vocab] after each token of a text or of ids; [batch, tokens, vocab] of ids [batch, tokens]."""
        if isinstance(prompt, np.ndarray) and prompt.ndim == 2:
            if len(prompt) == 0:
                raise ValueError(f"logits: prompt has no rows; it must be ids [batch, tokens]; got shape {prompt.shape}")
            return np.stack([self.logits(row) for row in prompt])
        ids = self._ids("logits", prompt, "prompt")
        if len(ids) > self.config.context:
            raise ValueError(
                f"logits: the prompt has {len(ids)} tokens, more than the model's context of {self.config.context}"
            )
        out = np.empty((len(ids), self.config.vocab), np.float32)
        done = 0
        for chunk in measure.chunks_of_logits(self.decoder, ids, self.scheduler.cache_dtype):
            out[done : done + len(chunk)] = chunk
            done += len(chunk)
        return out

    def perplexity(
        self, text: Prompt, *, window: int | None = None, stride: int | None = None,
        progress: Callable[[int], object] = lambda done: None,
    ) -> float:  # fmt: skip
        """exp of the mean cross-entropy, in nats, of all tokens but the first. A text longer than window (None: the context)
        is read in windows that begin every stride (None: half a window) tokens; each token counts once.
        progress is called with the number of tokens of each chunk that is done."""
        window = self.config.context if window is None else check_integer("perplexity", "window", window, at_least=2)
        if window > self.config.context:
            raise ValueError(f"perplexity: window must be <= {self.config.context}, the model's context; got {window}")
        stride = max(1, window // 2) if stride is None else check_integer("perplexity", "stride", stride, at_least=1)
        if stride >= window:
            raise ValueError(f"perplexity: stride must be < {window}, the window; got {stride}")
        ids = self._ids("perplexity", text, "text")
        if len(ids) < 2:
            raise ValueError(f"perplexity: text must have at least two tokens; got {len(ids)}")
        return measure.perplexity(self.decoder, ids, window, stride, self.scheduler.cache_dtype, progress)

    # ---- vectors ----

    def embedder(self, pooling: str) -> "SentenceModel":
        """A model of vectors over these weights. pooling: "last" (of causal models the one token that has seen the whole
        text), "mean", "max", "cls" (the first token), "weightedmean" (the n-th token counts n times) or "mean_sqrt_len" (a
        sum over the root of its length). Models trained to write give middling vectors."""
        from fastmixer.embed.sentence_model import sentence_model_of
        from fastmixer.weights.encoder_recipe import POOLINGS

        check_choice("embed", "pooling", pooling, POOLINGS)
        return sentence_model_of(self.decoder, self._need_tokenizer("embed"), self.name, pooling)

    def embed(self, texts: str | Iterable[str], *, pooling: str | None = None, **options: Any) -> np.ndarray:
        """float32 [n, dim] of texts; see SentenceModel.embed for options. A language model's folder does not say how its
        hidden states become vectors, so pooling must; see embedder. ValueError without it."""
        if pooling is None:
            raise ValueError(
                f"embed: {self.name} is a language model without pooling files (modules.json, 1_Pooling); give "
                "pooling='last' or 'mean', or load a model that is made for vectors"
            )
        return self.embedder(pooling).embed(texts, **options)

    # ---- the model itself ----

    def info(self) -> dict[str, Any]:
        """What the model is made of, how its weights are kept, the memory it takes (bytes), and its tokenizer."""
        kinds: dict[str, int] = {}
        for kind in self.decoder.kinds.values():
            kinds[kind] = kinds.get(kind, 0) + 1
        tokenizer = self.tokenizer
        return {
            "name": self.name,
            "architecture": asdict(self.config),
            "context": self.context,
            "weights": {"asked": self.decoder.weights, "matrices": kinds, "bytes": self.decoder.nbytes},
            "cache": {
                "tokens": self.scheduler.cache_tokens,
                "dtype": self.scheduler.cache_dtype,
                "bytes": self.scheduler.cache_bytes,
            },
            "tokenizer": None if tokenizer is None else {
                "kind": tokenizer.kind,
                "vocab": tokenizer.vocab_size,
                "end": [tokenizer.id_to_token(i) for i in sorted(tokenizer.end_ids)],
                "begin": None if tokenizer.begin_id is None else tokenizer.id_to_token(tokenizer.begin_id),
                "adds_begin": tokenizer.adds_begin,
                "chat_template": tokenizer.chat_template is not None,
            },
            "generation": dict(self.generation),
        }  # fmt: skip

    def reset_cache(self) -> None:
        """Forget what earlier calls computed, and give its memory back."""
        self.scheduler.forget()

    # ---- prompts ----

    def _sequences(
        self, prompt: Any, given: dict[str, Any], return_details: bool
    ) -> tuple[list[Written], tuple[bool, int]]:
        """Sequences for all prompts and samples, not begun yet, and the shape of the result: (one prompt, n)."""
        options = make_options(self.generation, given)
        if not return_details:
            self._need_tokenizer("generate")
        is_one = isinstance(prompt, str) or _is_ids(prompt)
        if not is_one and not isinstance(prompt, Sequence | np.ndarray):
            raise TypeError(f"generate: prompt must be a string, ids, or a list of those; got {type(prompt).__name__}")
        prompts = [prompt] if is_one else list(prompt)
        if not prompts:
            raise ValueError("generate: the list of prompts is empty")
        rows = [self._ids("generate", one, f"prompt {index}") for index, one in enumerate(prompts)]
        sequences = [
            self.scheduler.make(ids, options, index=index, sample=sample)
            for index, ids in enumerate(rows)
            for sample in range(options.n)
        ]
        return sequences, (is_one, options.n)

    def _one_sequence(self, prompt: Any, given: dict[str, Any]) -> Written:
        options: Options = make_options(self.generation, given)
        if options.n != 1:
            raise ValueError(f"stream: n must be 1; got {options.n}")
        if not isinstance(prompt, str) and not _is_ids(prompt):
            raise TypeError(f"stream: prompt must be a string or ids; got {type(prompt).__name__}")
        return self.scheduler.make(self._ids("stream", prompt, "prompt"), options, wants_text=True)

    def _ids(self, op: str, prompt: Any, name: str) -> np.ndarray:
        """int64 [tokens], at least one."""
        if isinstance(prompt, str):
            ids = self._need_tokenizer(op).encode(prompt, begin=True)
        elif _is_ids(prompt) or (isinstance(prompt, list | tuple) and not prompt):
            # Judged before they become int64, which many an integer is too large for.
            ids = prompt if isinstance(prompt, np.ndarray) else np.array(prompt, object)
        else:
            raise TypeError(f"{op}: {name} must be a string or ids, integers [tokens]; got {type(prompt).__name__}")
        if len(ids) == 0:
            raise ValueError(f"{op}: {name} is empty; it must have at least one token")
        check_id_range(op, name, ids, self.config.vocab)
        return np.asarray(ids, np.int64)

    def _chat_prompt(
        self, messages: Messages, template: Mapping[str, Any] | None, options: dict[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        tokenizer = self._need_tokenizer("chat")
        if tokenizer.chat_template is None:
            raise ValueError(f"chat: {self.name} has no chat template; use generate")
        if template is not None and not (isinstance(template, Mapping) and all(isinstance(key, str) for key in template)):
            raise TypeError(f"chat: template must be a dict of what the chat template asks for; got {template!r}")
        text = render_chat(tokenizer, messages, **(template or {}))
        # The template has written the tokens that begin a text, if there are any.
        ids = tokenizer.encode(text)
        defaults = {} if "max_new_tokens" in self.generation else {"max_new_tokens": CHAT_TOKENS}
        return ids, {**defaults, **options}

    def _need_tokenizer(self, op: str) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"{op}: {self.name} has no tokenizer; give prompts as ids, and return_details=True")
        return self.tokenizer

    def _cancel(self, sequences: list[Written]) -> None:
        for sequence in sequences:
            self.scheduler.cancel(sequence)

    def _results(self, sequences: list[Written], shape: tuple[bool, int], return_details: bool) -> Any:
        is_one, n = shape
        details: list[Generation] = [result_of(sequence, self.tokenizer) for sequence in sequences]
        found: list[Any] = list(details) if return_details else [one.text for one in details]
        if n > 1:
            found = [found[first : first + n] for first in range(0, len(found), n)]
        return found[0] if is_one else found


def _is_ids(prompt: Any) -> bool:
    """Whether it is one prompt of integers; an empty list is no prompt."""
    if isinstance(prompt, np.ndarray):
        return prompt.ndim == 1 and prompt.dtype.kind in "iu"
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str | bytes)
        and len(prompt) > 0
        and all(isinstance(one, int | np.integer) and not isinstance(one, bool) for one in prompt)
    )
