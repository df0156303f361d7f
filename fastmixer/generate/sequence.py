"""One prompt on its way: its ids, what it has written, why it ended, which pages it holds. Knows nothing of others."""

import time
from collections.abc import Callable

import numpy as np

from fastmixer.generate.options import Options, TokenLogprob
from fastmixer.generate.pages import Block, PagePool, first_visible
from fastmixer.generate.sampler import Sampler
from fastmixer.generate.speculative import PromptLookup
from fastmixer.generate.text_so_far import TextSoFar
from fastmixer.kernels.decoder.pages import PAGE
from fastmixer.kernels.decoder.spec import FEW_TOKENS


class Sequence:
    """What Scheduler.submit gives back.

    tokens: written so far. finish_reason: "" until it has ended. error: what it failed of, which whoever waits for it
    raises. is_finished: it has ended, failed or been cancelled, and holds no page. text: pieces as they become certain,
    where they were asked for. listener: called (in any thread) after each step that it took part in.
    """

    def __init__(
        self, prompt: np.ndarray, options: Options, sampler: Sampler, *, groups: int, longest: int,
        end_ids: frozenset[int], text: TextSoFar | None,
    ):  # fmt: skip
        """prompt: int64 [tokens]; longest: positions that the model has; end_ids: tokens that end a text."""
        self.options, self.sampler, self.text = options, sampler, text
        self.prompt_tokens = len(prompt)
        # The last token is written, but never read: it needs no position.
        self.most_positions = min(len(prompt) + options.max_new_tokens - 1, longest)
        self.ids = np.empty(self.most_positions + 1, np.int64)
        self.ids[: len(prompt)] = prompt
        self.length = len(prompt)  # ids that are known
        self.computed = 0  # positions whose keys and values are in pages
        self.reused_tokens = self.drafted_tokens = self.accepted_tokens = 0
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] | None = None if options.logprobs is None else []
        self.finish_reason = ""
        self.error: BaseException | None = None
        self.is_finished = self.is_cancelled = False
        self.listener: Callable[[], None] | None = None
        self.started = self.first_token_at = self.last_token_at = 0.0
        self.sampled_tokens = 0
        self._end_ids = frozenset() if options.ignore_eos else end_ids
        self._stop_ids = options.stop_ids
        self._lookup = PromptLookup(prompt.tolist()) if options.speculative else None
        # pages
        self.tables = np.full((groups, -(-self.most_positions // PAGE)), -1, np.int32)
        self._first_held = [0] * groups  # before this place of a table nothing is held
        self._block: Block | None = None  # the last full page that others can find
        self._published = 0

    @property
    def remaining(self) -> int:
        """Ids that are known and not computed."""
        return self.length - self.computed

    @property
    def is_writing(self) -> bool:
        """Whether its prompt has been read."""
        return self.computed >= self.prompt_tokens

    def draft(self) -> int:
        """Guess what comes next: so many tokens are written behind ids[:length], to be checked."""
        if self._lookup is None or not self.is_writing:
            return 0
        # with the newest known token no more than come out as they would one by one
        room = min(self.options.speculative, FEW_TOKENS - 1, self.most_positions - self.length)
        guess = self._lookup.guess(room)
        self.ids[self.length : self.length + len(guess)] = guess
        return len(guess)

    def accept(self, token: int, logprob: TokenLogprob | None) -> None:
        """Take a token that was drawn."""
        self.last_token_at = time.perf_counter()
        if not self.sampled_tokens:
            self.first_token_at = self.last_token_at
        self.sampled_tokens += 1
        self.sampler.accept(token)
        if token in self._end_ids:
            self._finish("eos")
            return
        if token in self._stop_ids:
            self._finish("stop")
            return
        self.ids[self.length] = token
        self.length += 1
        self.tokens.append(token)
        if self.logprobs is not None and logprob is not None:
            self.logprobs.append(logprob)
        if self._lookup is not None:
            self._lookup.add(token)
        if self.text is not None:
            self.text.push(token)
            if self.text.has_stopped:
                self._finish("stop")
                return
        if self.length > self.most_positions:
            self._finish("length")

    def _finish(self, reason: str) -> None:
        if self.text is not None:
            self.text.end()
            if self.text.has_stopped:
                reason = "stop"
        self.finish_reason = reason

    # ---- pages ----

    def held(self, group: int) -> list[int]:
        """The pages it holds."""
        table = self.tables[group]
        return table[table >= 0].tolist()

    def reuse(self, pool: PagePool, blocks: list[Block]) -> None:
        """Begin behind these blocks instead of at the beginning."""
        for group, window in enumerate(pool.windows):
            first = first_visible(len(blocks) * PAGE, window) // PAGE
            self._first_held[group] = first
            for place in range(first, len(blocks)):
                pool.hold(group, blocks[place].pages[group])
                self.tables[group, place] = blocks[place].pages[group]
        self._block, self._published = blocks[-1] if blocks else None, len(blocks)
        self.computed = self.reused_tokens = len(blocks) * PAGE

    def restart(self) -> None:
        """Nothing is computed and nothing held."""
        self.tables.fill(-1)
        self._first_held = [0] * len(self._first_held)
        self._block, self._published = None, 0
        self.computed = self.reused_tokens = 0

    def make_room(self, pool: PagePool, count: int) -> None:
        """Hold the pages that the next `count` positions are written to."""
        first, end = self.computed // PAGE, (self.computed + count - 1) // PAGE + 1
        for group in range(len(pool.sizes)):
            for place in range(first, end):
                if self.tables[group, place] < 0:
                    self.tables[group, place] = pool.take(group)

    def keep_pages(self, pool: PagePool) -> None:
        """Full pages can be found by others; those that no later token sees are given back."""
        while (self._published + 1) * PAGE <= self.computed:
            place = self._published
            ids = self.ids[place * PAGE : (place + 1) * PAGE]
            self._block = pool.publish(self._block, ids, self.tables[:, place].tolist())
            self._published += 1
        for group, window in enumerate(pool.windows):
            if window:
                end = first_visible(self.computed, window) // PAGE
                while self._first_held[group] < end:
                    self._give_back(pool, group, self._first_held[group])
                    self._first_held[group] += 1

    def release(self, pool: PagePool) -> None:
        """Give back all pages, the last ones first: a beginning is worth more than what follows it."""
        for group in range(len(pool.sizes)):
            for place in range(self.tables.shape[1] - 1, self._first_held[group] - 1, -1):
                self._give_back(pool, group, place)

    def _give_back(self, pool: PagePool, group: int, place: int) -> None:
        page = int(self.tables[group, place])
        if page >= 0:
            self.tables[group, place] = -1
            pool.release(group, page)
