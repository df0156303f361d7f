"""Text to iterate over, piece by piece as it is written: for threads that wait, and for event loops that must not.

Knows nothing of what the pieces come from but that a scheduler advances it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastmixer.generate.options import Generation
from fastmixer.generate.scheduler import Scheduler
from fastmixer.generate.sequence import Sequence
from fastmixer.generate.text_so_far import text_before_stops

if TYPE_CHECKING:
    from fastmixer.text import Tokenizer


def result_of(sequence: Sequence, tokenizer: "Tokenizer | None") -> Generation:
    """What a sequence has come to."""
    text = ""
    if tokenizer is not None:
        text = text_before_stops(tokenizer.decode(sequence.tokens), sequence.options.stop_texts)
    first, last = sequence.first_token_at, sequence.last_token_at
    return Generation(
        text=text,
        tokens=list(sequence.tokens),
        finish_reason=sequence.finish_reason,
        logprobs=None if sequence.logprobs is None else list(sequence.logprobs),
        prompt_tokens=sequence.prompt_tokens,
        reused_tokens=sequence.reused_tokens,
        sampled_tokens=sequence.sampled_tokens,
        prefill_seconds=first - sequence.started if first else 0.0,
        decode_seconds=last - first,
        drafted_tokens=sequence.drafted_tokens,
        accepted_tokens=sequence.accepted_tokens,
    )


class TextStream:
    """An iterator over pieces of text. close() (or leaving it as a context) ends it early; so does forgetting it."""

    def __init__(self, scheduler: Scheduler, sequence: Sequence, tokenizer: "Tokenizer"):
        assert sequence.text is not None
        self._scheduler, self._sequence, self._tokenizer = scheduler, sequence, tokenizer
        self._pieces = sequence.text.pieces
        self._is_closed = False
        scheduler.start([sequence])

    def __iter__(self) -> "TextStream":
        return self

    def __next__(self) -> str:
        sequence = self._sequence
        try:
            while not self._pieces and not sequence.is_finished:
                self._scheduler.advance(sequence, len(sequence.tokens))
        except BaseException:
            self.close()
            raise
        if self._pieces and not self._is_closed:
            return self._pieces.popleft()
        if sequence.error is not None:
            raise sequence.error
        raise StopIteration

    def __enter__(self) -> "TextStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Any thread may find that nobody wants it, in the middle of anything: the next step lets it go.
        if hasattr(self, "_sequence"):
            self._sequence.is_cancelled = True

    def close(self) -> None:
        """End it here; nothing happens if it had ended."""
        self._is_closed = True
        self._scheduler.cancel(self._sequence)

    @property
    def details(self) -> Generation:
        """What came so far: finish_reason is "" until the text has ended."""
        return result_of(self._sequence, self._tokenizer)


class AsyncTextStream:
    """TextStream for `async for`: steps are made by a thread, the event loop is free. aclose(), or cancelling the task that
    waits for a piece, ends it."""

    def __init__(self, scheduler: Scheduler, sequence: Sequence, tokenizer: "Tokenizer"):
        assert sequence.text is not None
        self._sequence, self._tokenizer = sequence, tokenizer
        self._pieces = sequence.text.pieces
        self._scheduler = scheduler
        self._waiter: Waiter | None = None
        self._is_closed = False

    def __aiter__(self) -> "AsyncTextStream":
        return self

    async def __anext__(self) -> str:
        sequence = self._sequence
        if self._waiter is None:
            self._waiter = Waiter(self._scheduler, [sequence])
        try:
            await self._waiter.until(lambda: bool(self._pieces) or sequence.is_finished)
        except BaseException:
            await self.aclose()
            raise
        if self._pieces and not self._is_closed:
            return self._pieces.popleft()
        if sequence.error is not None:
            raise sequence.error
        raise StopAsyncIteration

    async def __aenter__(self) -> "AsyncTextStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_sequence"):
            self._sequence.is_cancelled = True

    async def aclose(self) -> None:
        """End it here; nothing happens if it had ended."""
        self._is_closed = True
        self._scheduler.cancel(self._sequence)

    @property
    def details(self) -> Generation:
        """What came so far: finish_reason is "" until the text has ended."""
        return result_of(self._sequence, self._tokenizer)


class Waiter:
    """Lets a coroutine wait for sequences that a thread of the scheduler drives; begins them."""

    def __init__(self, scheduler: Scheduler, sequences: list[Sequence]):
        import asyncio  # 50 ms that nobody else needs

        loop, self._event = asyncio.get_running_loop(), asyncio.Event()
        for sequence in sequences:
            sequence.listener = _listener(loop, self._event, sequence)
        scheduler.start(sequences)
        scheduler.drive()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until is_so(), which is asked after each step."""
        while True:
            self._event.clear()
            if is_so():
                return
            await self._event.wait()


def _listener(loop: Any, event: Any, sequence: Sequence) -> Callable[[], None]:
    def tell() -> None:
        try:
            loop.call_soon_threadsafe(event.set)
        except RuntimeError:  # the loop has closed: nobody waits any more
            sequence.is_cancelled = True

    return tell
