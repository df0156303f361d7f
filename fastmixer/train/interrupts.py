"""Ctrl-C while training: the first asks the loop to end after its step, a second one ends it at once. Knows no loops."""

import signal
import threading
from types import FrameType
from typing import Any, Protocol


class Interruptible(Protocol):
    """What looks at its _interrupted after each step."""

    _interrupted: bool


class Interrupts:
    """In a `with` block of the main thread Ctrl-C sets trainer._interrupted; one that finds it set raises as ever."""

    def __init__(self, trainer: Interruptible):
        self._trainer = trainer
        self._before: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def __exit__(self, *exception: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._trainer._interrupted:
            raise KeyboardInterrupt
        self._trainer._interrupted = True
