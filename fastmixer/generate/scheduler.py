"""Many sequences through one decoder: they join and leave at any step, and each step is one call for all of them.

A step takes the newest token of every sequence that writes (with the guesses that stand behind it) and up to CHUNK tokens
of prompts, packed one after another. Beginnings that an earlier sequence had are not computed again; one that another
sequence is reading right now is waited for. Knows nothing of files, or of what the text is for.

Any number of threads may submit and wait: one of those that wait makes the step, which serves all, and then lets another.
A sequence with deterministic=True goes in calls of its own, by chunks that begin at multiples of CHUNK, and reuses nothing.
"""

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmixer.generate.memory import require_memory
from fastmixer.generate.options import Options, PromptTooLong, bias_arrays, with_stop_ids
from fastmixer.generate.pages import Block, PagePool, bytes_of_pages, cache_pages, most_pages
from fastmixer.generate.sampler import Sampler, choose, token_logprob
from fastmixer.generate.sequence import Sequence
from fastmixer.generate.text_so_far import TextSoFar
from fastmixer.kernels.decoder.pages import PAGE
from fastmixer.memory import available_memory
from fastmixer.ops.checks import check_id_range, check_integer

if TYPE_CHECKING:
    from fastmixer.text import Tokenizer

CHUNK = 512  # tokens of prompts in a step: enough for whole tiles, and Ctrl-C and other sequences wait for no more
MAX_SEQUENCES = 64  # that write at once
CACHE_CONTEXTS, CACHE_SHARE = 4, 0.25  # unless told: so many contexts, if they fit into this part of what is available


class Scheduler:
    """The sequences of one decoder (fastmixer.model.decoder.Decoder, or what has its step, new_pages, page_bytes, windows
    and config).

    tokenizer: for stop strings, streams and the end of texts (None: nothing of these). cache_tokens: positions whose keys
    and values are kept (None: CACHE_CONTEXTS contexts or what fits); fewer than the context make that the context.
    cache_dtype: "float32", "bfloat16" or "int8". MemoryError if that is more than there is.
    """

    def __init__(
        self, decoder: Any, tokenizer: "Tokenizer | None" = None, *, cache_tokens: int | None = None,
        cache_dtype: str = "bfloat16", max_sequences: int = MAX_SEQUENCES, chunk: int = CHUNK,
    ):  # fmt: skip
        self.decoder, self.tokenizer = decoder, tokenizer
        self.cache_dtype = cache_dtype
        self.max_sequences = check_integer("Scheduler", "max_sequences", max_sequences, at_least=1)
        self.chunk = check_integer("Scheduler", "chunk", chunk, at_least=1)
        if cache_tokens is not None:
            check_integer("Scheduler", "cache_tokens", cache_tokens, at_least=PAGE)
        self.cache_tokens = self._cache_tokens(cache_tokens)
        self.context = min(decoder.config.context, self.cache_tokens)
        # A model may have more rows than its tokenizer has pieces: those are never written.
        self.vocab = min(decoder.config.vocab, tokenizer.vocab_size) if tokenizer else decoder.config.vocab
        self._has_all_pieces = self.vocab == decoder.config.vocab
        self._end_ids = tokenizer.end_ids if tokenizer else frozenset()
        sizes = cache_pages(decoder, self.cache_tokens, self.chunk)
        require_memory(
            f"a cache of {self.cache_tokens} tokens in {cache_dtype}",
            bytes_of_pages(decoder, sizes, cache_dtype),
            "ask for a smaller context, fewer cache_tokens or a smaller cache_dtype",
        )
        self.pool = PagePool(sizes, decoder.windows)
        self.pages = decoder.new_pages(sizes, cache_dtype)
        self._logits = np.empty((0, decoder.config.vocab), np.float32)  # of the step that is being made
        self.forwarded_tokens = self.steps = 0
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._condition = threading.Condition()
        self._is_stepping = False
        self._driver: threading.Thread | None = None
        self._at_work: Sequence | None = None

    # ---- what callers do, in any thread ----

    def submit(
        self, prompt: np.ndarray, options: Options, *, index: int = 0, sample: int = 0, wants_text: bool = False,
    ) -> Sequence:  # fmt: skip
        """A sequence that begins with prompt: int64 [tokens]. index, sample: its place among prompts and among the samples
        of its prompt, which its random numbers depend on, besides the seed. wants_text: pieces of text as they come.

        ValueError or IndexError for a prompt that is empty, too long, or not of ids.
        """
        sequence = self.make(prompt, options, index=index, sample=sample, wants_text=wants_text)
        with self._condition:
            self._waiting.append(sequence)
        return sequence

    def make(
        self, prompt: np.ndarray, options: Options, *, index: int = 0, sample: int = 0, wants_text: bool = False,
    ) -> Sequence:  # fmt: skip
        """As submit, but nothing begins."""
        if len(prompt) == 0:
            raise ValueError(f"generate: prompt {index} is empty; it must have at least one token")
        if len(prompt) > self.context:
            raise PromptTooLong(index, len(prompt), self.context)
        check_id_range("generate", f"prompt {index}", prompt, self.decoder.config.vocab)
        options = with_stop_ids(options, self.tokenizer, self.vocab)
        bias = bias_arrays(options, self.tokenizer, self.vocab)
        text = None
        if wants_text or options.stop_texts:
            if self.tokenizer is None:
                raise ValueError("generate: stop strings and streams of text need a tokenizer; the model has none")
            text = TextSoFar(self.tokenizer, options.stop_texts)
        seed = np.random.SeedSequence().entropy if options.seed is None else options.seed
        sampler = Sampler(options, (seed, index, sample), bias, prompt)  # type: ignore[arg-type]
        return Sequence(
            prompt,
            options,
            sampler,
            groups=len(self.pool.sizes),
            longest=self.context,
            end_ids=self._end_ids,
            text=text,
        )

    def start(self, sequences: list[Sequence]) -> None:
        """Begin what make has made."""
        with self._condition:
            self._waiting += sequences

    def advance(self, sequence: Sequence, seen: int) -> None:
        """Step, or wait while other threads do, until the sequence has more than `seen` tokens or is finished. Raises what
        it failed of."""
        while not sequence.is_finished and len(sequence.tokens) <= seen:
            self._take_turn(sequence, seen)
        if sequence.error is not None:
            raise sequence.error

    def finish(self, sequence: Sequence) -> None:
        """Step until the sequence is finished. Raises what it failed of."""
        self.advance(sequence, len(sequence.ids))

    def cancel(self, sequence: Sequence) -> None:
        """It ends where it is, and holds nothing; nothing happens if it had ended already."""
        with self._condition:
            sequence.is_cancelled = True
            if not self._is_stepping:
                self._drop_cancelled()
                self._condition.notify_all()

    def step(self) -> bool:
        """One step by this thread; False if there was nothing to do."""
        return self._take_turn(None, 0)

    def forget(self) -> None:
        """Nothing of earlier sequences is used again; memory that nothing needs any more goes back to the system."""
        with self._condition:
            while self._is_stepping:
                self._condition.wait()
            self._drop_cancelled()
            self.pool.forget()
            self._logits = self._logits[:0].copy()
            if not self.pool.held:
                self.pages = self.decoder.new_pages(self.pool.sizes, self.cache_dtype)

    def drive(self) -> None:
        """Let a thread of its own step as long as sequences with a listener are not finished."""
        with self._condition:
            if self._driver is None:
                self._driver = threading.Thread(target=self._drive, name="fastmixer-generate", daemon=True)
                self._driver.start()

    @property
    def active(self) -> int:
        """Sequences that have not finished."""
        return len(self._waiting) + len(self._running)

    @property
    def cache_bytes(self) -> int:
        """Memory of keys and values when all pages are in use."""
        return bytes_of_pages(self.decoder, self.pool.sizes, self.cache_dtype)

    # ---- whose turn it is ----

    def _take_turn(self, sequence: Sequence | None, seen: int) -> bool:
        """A step, unless another thread's step serves the sequence; False if there was nothing to do."""
        mine = False
        try:
            with self._condition:
                while self._is_stepping:
                    self._condition.wait()
                    if sequence is not None and (sequence.is_finished or len(sequence.tokens) > seen):
                        return True
                mine = self._is_stepping = True
            return self._step()
        finally:
            if mine:
                with self._condition:
                    self._drop_cancelled()
                    self._is_stepping = False
                    self._condition.notify_all()

    def _drive(self) -> None:
        while True:
            with self._condition:
                if all(one.listener is None for one in self._waiting + self._running):
                    self._driver = None
                    return
            self.step()

    # ---- a step ----

    def _step(self) -> bool:
        done = False
        try:
            self._admit()
            work = self._plan()
            for batch in work:
                self._run(batch)
            touched = [sequence for batch in work for sequence, _ in batch]
            for sequence in touched:
                if sequence.finish_reason or sequence.error is not None:
                    self._leave(sequence)
            done = True
        finally:
            if not done:
                self._recover()
        for sequence in touched:
            if sequence.listener is not None:
                sequence.listener()
        self.steps += bool(work)
        return bool(work)

    def _plan(self) -> list[list[tuple[Sequence, int]]]:
        """Which sequences compute how many tokens, in which calls."""
        together: list[tuple[Sequence, int]] = []
        alone: list[list[tuple[Sequence, int]]] = []
        room, readers = self.chunk, []
        for sequence in self._running:
            remaining = sequence.remaining
            if remaining == 1:
                remaining += sequence.draft()
            if sequence.options.deterministic:
                alone.append([(sequence, min(remaining, self.chunk))])
            elif sequence.remaining == 1:
                together.append((sequence, remaining))
            elif room:
                together.append((sequence, min(remaining, room)))
                room -= together[-1][1]
                readers.append(sequence)
        # Prompts take turns: those that were read from go behind those that had to wait.
        if readers and not room:
            self._running = [one for one in self._running if one not in readers] + readers
        return ([together] if together else []) + alone

    def _run(self, batch: list[tuple[Sequence, int]]) -> None:
        """One call of the decoder, and what follows from it for each sequence."""
        try:
            rows, logits = self._forward(batch)
            single = [(sequence, row) for (sequence, _), (row, count) in zip(batch, rows, strict=True) if count == 1]
            tokens = self._choose_single(single, logits)
        except Exception as error:  # noqa: BLE001 - whoever waits for one of these sequences raises it
            for sequence, _ in batch:
                sequence.error = error
            return
        for (sequence, count), (row, row_count) in zip(batch, rows, strict=True):
            self._at_work = sequence
            try:
                self._take(sequence, count, logits[row : row + row_count], tokens.get(row))
            except Exception as error:  # noqa: BLE001 - as above
                sequence.error = error
        self._at_work = None

    def _forward(self, batch: list[tuple[Sequence, int]]) -> tuple[list[tuple[int, int]], np.ndarray]:
        """For each sequence (its first row, rows) of the logits: float32 [rows, vocab]."""
        for sequence, count in batch:
            sequence.make_room(self.pool, count)
            if not sequence.started:
                sequence.started = time.perf_counter()
        if len(batch) == 1:
            sequence, count = batch[0]
            ids = sequence.ids[sequence.computed : sequence.computed + count]
            tables = sequence.tables[:, None]
        else:
            ids = np.concatenate([one.ids[one.computed : one.computed + count] for one, count in batch])
            width = max(one.tables.shape[1] for one, _ in batch)
            tables = np.full((len(self.pool.sizes), len(batch), width), -1, np.int32)
            for place, (one, _) in enumerate(batch):
                tables[:, place, : one.tables.shape[1]] = one.tables
        starts: list[int] = [0]
        rows: list[tuple[int, int]] = []
        wanted: list[int] = []
        for sequence, count in batch:
            # The newest known token and the guesses behind it have rows; the middle of a prompt has none.
            first_wanted = min(sequence.remaining - 1, count)
            rows.append((len(wanted), count - first_wanted))
            wanted += range(starts[-1] + first_wanted, starts[-1] + count)
            starts.append(starts[-1] + count)
        if len(wanted) > len(self._logits):
            self._logits = np.empty((len(wanted), self.decoder.config.vocab), np.float32)
        logits = self._logits[: len(wanted)]
        self.decoder.step(
            ids,
            np.array(starts, np.int64),
            np.array([sequence.computed for sequence, _ in batch], np.int64),
            self.pages,
            tables,
            np.array(wanted, np.int64),
            logits,
            np.array([sequence.is_writing for sequence, _ in batch], np.uint8),
        )
        self.forwarded_tokens += len(ids)
        return rows, logits if self._has_all_pieces else logits[:, : self.vocab]

    def _choose_single(self, single: list[tuple[Sequence, int]], logits: np.ndarray) -> dict[int, int]:
        """By row, the token of each sequence that has one row. Deterministic or not: rows do not see each other."""
        if not single:
            return {}
        rows = [row for _, row in single]
        samplers = [sequence.sampler for sequence, _ in single]
        chosen = logits if len(rows) == len(logits) else logits[rows]
        try:
            return dict(zip(rows, choose(samplers, chosen), strict=True))
        except ValueError:
            if len(single) == 1:
                raise
            return {}  # one of them is wrong: each for itself says which

    def _take(self, sequence: Sequence, count: int, logits: np.ndarray, token: int | None) -> None:
        """What a sequence makes of its rows of logits: float32 [rows, vocab]; token: chosen from its only row."""
        if len(logits) == 0:
            sequence.computed += count
        else:
            sequence.computed += count - len(logits)
            drafted = len(logits) - 1
            sequence.drafted_tokens += drafted
            for place, row in enumerate(logits):
                guess = int(sequence.ids[sequence.length]) if place < drafted else -1
                chosen = choose([sequence.sampler], row[None])[0] if token is None else token
                wanted = sequence.options.logprobs
                logprob = None if wanted is None else token_logprob(row, chosen, wanted)
                sequence.computed += 1
                sequence.accept(chosen, logprob)
                if sequence.finish_reason or chosen != guess:
                    break  # what was computed behind a wrong guess will be written over
                sequence.accepted_tokens += 1
        sequence.keep_pages(self.pool)

    # ---- joining and leaving ----

    def _admit(self) -> None:
        """Waiting sequences join as long as their pages can be had, in order; those whose beginning is being read wait."""
        with self._condition:
            self._drop_cancelled()
            for sequence in list(self._waiting):
                if len(self._running) >= self.max_sequences:
                    return
                is_alone = sequence.options.deterministic
                blocks = [] if is_alone else self.pool.find(sequence.ids[: sequence.length])
                if not is_alone and self._is_being_read(sequence, len(blocks)):
                    continue
                if not self._fits(sequence, blocks):
                    return
                sequence.reuse(self.pool, blocks)
                self._running.append(sequence)
                self._waiting.remove(sequence)

    def _is_being_read(self, sequence: Sequence, known: int) -> bool:
        """Whether a running sequence will soon have more full pages of this beginning than the `known` ones."""
        most = (sequence.prompt_tokens - 1) // PAGE
        for other in self._running:
            shared = min(most, other.prompt_tokens // PAGE)
            if shared <= known or other.computed >= other.prompt_tokens:
                continue
            same = sequence.ids[: shared * PAGE] == other.ids[: shared * PAGE]
            equal = len(same) if same.all() else int(same.argmin())
            if equal // PAGE > known:
                return True
        return False

    def _fits(self, sequence: Sequence, blocks: list[Block]) -> bool:
        """Whether the sequence can have all the pages that it may need, beside what the running ones may need."""
        for group, window in enumerate(self.pool.windows):
            need = self._most_pages(sequence, window)
            promised = sum(self._most_pages(one, window) for one in self._running)
            if window:  # pages come and go: each sequence counts with its most
                if promised + need > self.pool.sizes[group]:
                    return False
                continue
            # what is held already counts once, however many hold it
            promised -= sum(len(one.held(group)) for one in self._running)
            shared = sum(self.pool.is_held(group, block.pages[group]) for block in blocks)
            if promised + need - shared > self.pool.available(group):
                return False
        return True

    def _most_pages(self, sequence: Sequence, window: int) -> int:
        return most_pages(sequence.most_positions, window, self.chunk)

    def _drop_cancelled(self) -> None:
        for sequence in [one for one in self._waiting + self._running if one.is_cancelled]:
            self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        sequence.release(self.pool)
        with self._condition:
            sequence.is_finished = True
            for sequences in (self._waiting, self._running):
                if sequence in sequences:
                    sequences.remove(sequence)
        if sequence.listener is not None:
            sequence.listener()

    def _recover(self) -> None:
        """After Ctrl-C in the middle of a step: the sequence at work may be half changed, the others are as before it."""
        if self._at_work is not None:
            self._at_work.error = RuntimeError("generate: the step that this sequence was in has been interrupted")
            self._at_work = None
        self._waiting = [one for one in self._waiting if one not in self._running]
        for sequence in self._waiting:
            sequence.restart()
        for sequence in self._running:
            if sequence.error is not None or sequence.finish_reason:
                sequence.is_cancelled = True
        groups = range(len(self.pool.sizes))
        self.pool.recount([[page for one in self._running for page in one.held(group)] for group in groups])

    # ---- memory ----

    def _cache_tokens(self, asked: int | None) -> int:
        context = self.decoder.config.context
        if asked is not None:
            return asked // PAGE * PAGE
        available = available_memory()
        contexts = CACHE_CONTEXTS
        if available is not None:
            while contexts > 1:
                sizes = cache_pages(self.decoder, contexts * context, self.chunk)
                if bytes_of_pages(self.decoder, sizes, self.cache_dtype) <= available * CACHE_SHARE:
                    break
                contexts -= 1
        return -(-contexts * context // PAGE) * PAGE
