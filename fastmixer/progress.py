"""A progress bar that shows itself once work has taken a second. Knows nothing of the work.

tqdm is imported when a bar first shows: that takes 20 ms, a twentieth of loading a small model.
"""

import time
from contextlib import AbstractContextManager
from typing import Any

PROGRESS_AFTER = 1.0  # seconds that pass in silence


class LateBar(AbstractContextManager["LateBar"]):
    """tqdm's bar of `total` (None: unknown), from `after` seconds on; shown=False: never. look: tqdm's other arguments."""

    def __init__(self, total: int | None, *, shown: bool = True, after: float = PROGRESS_AFTER, **look: Any):
        self._total, self._shown, self._after, self._look = total, shown, after, look
        self._begin, self._done = time.time(), 0
        self._bar: Any = None

    def __enter__(self) -> "LateBar":
        if self._after <= 0:
            self.update(0)
        return self

    def update(self, count: int) -> None:
        """So much more is done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._shown and time.time() >= self._begin + self._after:
            self._bar = self._begun_then()
            self._bar.update(self._done)

    def __exit__(self, *raised: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _begun_then(self) -> Any:
        from tqdm import tqdm

        # All in one place: bars of other threads would else stand below each other, by codes that move the cursor.
        bar = tqdm(total=self._total, delay=self._after, dynamic_ncols=True, leave=False, position=0, **self._look)
        bar.start_t = bar.last_print_t = self._begin  # its rate and the time left count from there
        return bar
