"""The number of threads, and the way jit kernels use them.

Native kernels run on the pool in pool.c; jit kernels, whose compiled blocks release the GIL, on `parallel_for`.
Knows nothing of arrays or ops.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib.util import find_spec
from itertools import count
from numbers import Integral

from fastmixer.kernels.threads.limits import MOST_THREADS, allowed_processors, default_threads

DIGITS = 20  # Python refuses to convert thousands of them

_threads: int | None = None
_executor: ThreadPoolExecutor | None = None
_executor_workers = 0
_lock = threading.Lock()
_local = threading.local()


def get_threads() -> int:
    """The number of threads that kernels use; on first call FASTMIXER_THREADS or the machine decides."""
    if _threads is None:
        set_threads(_threads_from_environment())
    assert _threads is not None
    return _threads


def set_threads(threads: int) -> None:
    """Use this many threads from now on (results do not depend on it). Raises ValueError unless it is in 1..1024."""
    global _threads
    if not isinstance(threads, Integral) or isinstance(threads, bool) or threads < 1:
        raise ValueError(f"set_threads: threads must be an integer >= 1; got {threads!r}")
    threads = int(threads)
    if threads > MOST_THREADS:
        raise ValueError(
            f"set_threads: threads must be at most {MOST_THREADS}; got {threads if threads < 10**18 else 'more than 10^18'}"
        )
    _threads = threads
    if find_spec("fastmixer.kernels.threads.native") is not None:
        from fastmixer.kernels.threads import native

        native.set_threads(threads, len(allowed_processors()))


def _threads_from_environment() -> int:
    text = os.environ.get("FASTMIXER_THREADS", "").strip()
    if not text:
        return default_threads()
    if not text.isascii() or not text.isdigit() or not text.strip("0"):
        raise ValueError(f"FASTMIXER_THREADS must be an integer >= 1; got {_shortened(repr(text))}")
    digits = text.lstrip("0")
    if len(digits) > DIGITS or int(digits) > MOST_THREADS:
        raise ValueError(f"FASTMIXER_THREADS must be at most {MOST_THREADS}; got {_shortened(repr(text))}")
    return int(digits)


def _shortened(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:20]}... ({len(text)} characters)"


def parallel_for(function: Callable[[int], object], tasks: int) -> None:
    """Call function(0), ..., function(tasks - 1) on the caller and up to get_threads() - 1 other Python threads.

    Tasks are handed out one by one. A nested call runs in its own thread. The first exception (KeyboardInterrupt
    included) stops the handing out and is raised once no task is running any more.
    """
    threads = get_threads()  # once: another Python thread may set it meanwhile
    workers = min(threads, tasks) - 1
    if workers <= 0 or getattr(_local, "inside", False):
        for task in range(tasks):
            function(task)
        return

    tickets = count()
    stop = threading.Event()

    def drain() -> None:
        _local.inside = True
        finished = False
        try:
            while not stop.is_set() and (task := next(tickets)) < tasks:
                function(task)
            finished = True
        finally:
            _local.inside = False
            if not finished:
                stop.set()

    futures: list[Future[None]] = []
    try:
        _submit(drain, workers, threads - 1, futures)
        drain()
    except BaseException:
        stop.set()
        raise
    finally:
        # Those that have not begun find no task left; nobody returns while a task is still running.
        started = [future for future in futures if not future.cancel()]
        wait(started)
    for future in started:
        future.result()


def _submit(function: Callable[[], None], times: int, workers: int, futures: list[Future[None]]) -> None:
    """Have an executor of so many workers call function so many times; futures receives one for each, even if it raises."""
    global _executor, _executor_workers
    with _lock:  # until all are submitted: a caller with another number of threads shuts this executor down
        if _executor is None or _executor_workers != workers:
            if _executor is not None:
                _executor.shutdown(wait=False)
            _executor = ThreadPoolExecutor(workers, thread_name_prefix="fastmixer")
            _executor_workers = workers
        for _ in range(times):
            futures.append(_executor.submit(function))


def _forget_executor_in_child() -> None:
    global _executor, _lock
    _executor = None
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_executor_in_child)
