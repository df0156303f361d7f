"""What asks a run to end: heard in the main thread alone, and as before once the run is over."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from fastmixer.train.interrupts import Interrupts

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@pytest.fixture
def trainer():
    return SimpleNamespace(_interrupted=False)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_and_its_handler_comes_back(trainer, number):
    heard = []
    before = signal.signal(number, lambda *arguments: heard.append(number))
    try:
        with Interrupts(trainer) as interrupts:
            assert (trainer._interrupted, interrupts.number) == (False, 0)
            os.kill(os.getpid(), number)
            assert (trainer._interrupted, interrupts.number) == (True, number) and not heard
        os.kill(os.getpid(), number)
        assert heard == [number]
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", SIGNALS[1:])
def test_only_a_second_ctrl_c_ends_at_once(trainer, number):
    with pytest.raises(KeyboardInterrupt), Interrupts(trainer) as interrupts:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # as when a shell and the system both tell of a terminal that is gone
        assert interrupts.number == number
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS[1:])
def test_what_is_ignored_stays_ignored(trainer, number):
    """nohup, say."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupts(trainer):
            os.kill(os.getpid(), number)
        assert not trainer._interrupted and signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_other_threads_hear_nothing(trainer):
    before = [signal.getsignal(number) for number in SIGNALS]

    def inside():
        with Interrupts(trainer):
            assert [signal.getsignal(number) for number in SIGNALS] == before

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
