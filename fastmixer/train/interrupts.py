"""Being asked to end while training, by Ctrl-C or the system: the loop finishes its step first. Knows no loops."""

import signal
import threading
from types import FrameType
from typing import Any, Protocol

ASKING = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Interruptible(Protocol):
    """What looks at its _interrupted after each step."""

    _interrupted: bool


class Interrupts:
    """In a `with` block of the main thread Ctrl-C, SIGTERM and SIGHUP set trainer._interrupted. A Ctrl-C that finds it set
    raises as ever; the others come twice unasked (a shell and the system both tell of a terminal that is gone).

    number: the signal that came first, 0 if none did.
    """

    def __init__(self, trainer: Interruptible):
        self._trainer = trainer
        self._before: dict[int, Any] = {}
        self.number = 0

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in ASKING if hasattr(signal, name)):
                before = signal.getsignal(number)
                # What is ignored stays so (nohup), but for Ctrl-C, which scripts ignore for what they start behind them;
                # None is a handler that Python could not put back.
                if before is not None and (before != signal.SIG_IGN or number == signal.SIGINT):
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._trainer._interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._trainer._interrupted = True
        self.number = self.number or number
