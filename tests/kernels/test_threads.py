"""The thread pool: every task once, whatever the number of threads, across forks, Python threads and Ctrl-C."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from fastmixer.kernels import select, threads
from fastmixer.kernels.threads import limits

NATIVE = [name for name in select.implementations("peak") if name.startswith("native")]


def read_everything(name="native-x86_64_v3", floats=3_000_000):
    """Sum of a known array through the native pool (read_memory has one task every 65536 floats)."""
    peak = select.kernel_module("peak", name)
    data = np.ones(floats, np.float32)
    sink = np.zeros((floats + 65535) // 65536, np.float32)
    peak.read_memory(data, sink)
    return sink.sum()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 100])
def test_parallel_for_runs_every_task_once(count, tasks):
    threads.set_threads(count)
    seen = []
    threads.parallel_for(seen.append, tasks)
    assert sorted(seen) == list(range(tasks))


def test_parallel_for_raises_the_first_error_and_stops():
    threads.set_threads(2)
    seen = []

    def task(index):
        seen.append(index)
        if index == 3:
            raise RuntimeError("task 3 failed")

    with pytest.raises(RuntimeError, match="task 3 failed"):
        threads.parallel_for(task, 10_000)
    assert len(seen) < 10_000


def test_parallel_for_while_others_set_threads():
    """Callers with other numbers of threads shut one another's executors down; no call may meet a closed one."""
    failures, calls, stop = [], [], time.monotonic() + 1

    def call():
        while time.monotonic() < stop:
            seen = []
            try:
                threads.parallel_for(seen.append, 20)
            except Exception as error:  # noqa: BLE001  (whatever it is, the test tells it)
                failures.append(error)
            else:
                calls.append(sorted(seen) == list(range(20)))

    def set_again_and_again():
        while time.monotonic() < stop:
            for number in (1, 2, 3, 4):
                threads.set_threads(number)

    others = [threading.Thread(target=function) for function in (call, call, call, call, set_again_and_again)]
    for other in others:
        other.start()
    for other in others:
        other.join(timeout=60)
    assert not failures and calls and all(calls)


def test_parallel_for_asks_for_the_number_of_threads_once(monkeypatch):
    """It may be 1 the second time, and an executor has at least one worker."""
    answers, seen = iter([3, 1, 1]), []
    monkeypatch.setattr(threads, "get_threads", lambda: next(answers))
    threads.parallel_for(seen.append, 10)
    assert sorted(seen) == list(range(10))


def test_set_threads_takes_any_integer():
    threads.set_threads(np.int64(2))
    assert threads.get_threads() == 2 and type(threads.get_threads()) is int


def test_parallel_for_nests():
    threads.set_threads(4)
    seen = []
    threads.parallel_for(lambda outer: threads.parallel_for(lambda inner: seen.append((outer, inner)), 5), 5)
    assert sorted(seen) == [(outer, inner) for outer in range(5) for inner in range(5)]


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_native_pool_runs_every_task_once(name, count):
    threads.set_threads(count)
    for _ in range(50):
        assert read_everything(name, 1_000_000) == 1_000_000


@pytest.mark.skipif(not NATIVE, reason="no native kernels were built")
def test_native_pool_serves_several_python_threads():
    threads.set_threads(2)
    results = []
    workers = [
        threading.Thread(target=lambda: results.extend(read_everything(NATIVE[0]) for _ in range(20))) for _ in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert results == [3_000_000] * 120


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone tells")
@pytest.mark.skipif(not NATIVE, reason="no native kernels were built")
@pytest.mark.parametrize("processors", [1, 2])
def test_workers_leave_their_callers_processor_to_it(processors):
    """Where there are enough of them for that."""
    code = textwrap.dedent(f"""
        import os, time, numpy as np
        allowed = set(sorted(os.sched_getaffinity(0))[:{processors}])
        os.sched_setaffinity(0, allowed)
        from fastmixer.kernels import select, threads
        threads.set_threads(2)
        kernel, data = select.kernel_module("peak", {NATIVE[0]!r}), np.ones(3_000_000, np.float32)
        for _ in range(30):
            time.sleep(0.005)  # workers sleep
            sink = np.zeros(64, np.float32)
            kernel.read_memory(data, sink)
            assert sink.sum() == 3_000_000
        barred = [allowed - os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")]
        assert sum(map(len, barred)) == (1 if len(allowed) > 1 else 0), barred
    """)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_gets_a_fresh_pool():
    code = textwrap.dedent("""
        import os, sys, numpy as np
        from fastmixer.kernels import select, threads
        threads.set_threads(4)
        name = select.implementations("peak")[-1]
        def work():
            data, sink = np.ones(1_000_000, np.float32), np.zeros(16, np.float32)
            select.kernel_module("peak", name).read_memory(data, sink)
            seen = []
            threads.parallel_for(seen.append, 100)
            return sink.sum() == 1_000_000 and len(seen) == 100
        assert work()
        for _ in range(5):
            child = os.fork()
            if child == 0:
                os._exit(0 if work() else 3)
            assert os.waitpid(child, 0)[1] == 0
        assert work()
    """)
    subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], check=True, timeout=60)


@pytest.mark.skipif(not NATIVE, reason="no native kernels were built")
def test_ctrl_c_is_noticed_inside_a_native_region():
    """A region of several seconds ends within 200 ms of SIGINT (twice that here, for a loaded machine)."""
    code = textwrap.dedent(f"""
        import time, numpy as np
        from fastmixer.kernels import select, threads
        threads.set_threads(2)
        peak = select.kernel_module("peak", {NATIVE[0]!r})
        sink = np.zeros(20_000, np.float32)
        peak.fma_rounds(sink[:100], 1000)
        print("ready", flush=True)
        try:
            peak.fma_rounds(sink, 1_000_000)
        except KeyboardInterrupt:
            print("interrupted", time.monotonic(), flush=True)
        peak.fma_rounds(sink[:100], 1000)
        print("usable", flush=True)
    """)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.3)
    sent = time.monotonic()
    child.send_signal(signal.SIGINT)
    word, noticed = child.stdout.readline().split()
    assert word == "interrupted"
    assert float(noticed) - sent < 0.4
    assert child.stdout.readline() == "usable\n"
    assert child.wait(timeout=30) == 0


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2", None, True, np.int64(0), np.float64(2), np.True_])
def test_set_threads_refuses(bad):
    with pytest.raises(ValueError, match=r"set_threads: threads must be an integer >= 1; got"):
        threads.set_threads(bad)


@pytest.mark.parametrize(
    ("bad", "told"),
    [(1025, "1025"), (2**31, "2147483648"), (10**20, "more than 10^18"), (10**6000, "more than 10^18")],
    ids=["just", "an int of C", "a long of C", "thousands of digits"],
)
def test_set_threads_has_a_limit(bad, told):
    before = threads.get_threads()
    with pytest.raises(ValueError) as caught:
        threads.set_threads(bad)
    assert str(caught.value) == f"set_threads: threads must be at most 1024; got {told}"
    assert threads.get_threads() == before
    threads.set_threads(limits.MOST_THREADS)
    assert threads.get_threads() == 1024


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1025", "'1025'"),
        (str(10**20), "'100000000000000000000'"),
        ("9" * 5000, "'9999999999999999999... (5002 characters)"),
    ],
)
def test_the_environment_has_a_limit(monkeypatch, text, told):
    monkeypatch.setenv("FASTMIXER_THREADS", text)
    with pytest.raises(ValueError) as caught:
        threads._threads_from_environment()
    assert str(caught.value) == f"FASTMIXER_THREADS must be at most 1024; got {told}"
    monkeypatch.setenv("FASTMIXER_THREADS", "0" * 5000 + "3")
    assert threads._threads_from_environment() == 3


@pytest.mark.parametrize("text", ["0", "-3", "two", "1.5"])
def test_environment_refuses(text):
    result = subprocess.run(
        [sys.executable, "-c", "import fastmixer; fastmixer.get_threads()"],
        env={**os.environ, "FASTMIXER_THREADS": text},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert f"FASTMIXER_THREADS must be an integer >= 1; got {text!r}" in result.stderr


def test_cgroup_quota_v2_takes_the_tightest_parent(tmp_path):
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "a" / "b").mkdir(parents=True)
    proc.write_text("0::/a/b\n")
    (root / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (root / "a" / "cpu.max").write_text("150000 100000\n")
    assert limits.cgroup_quota(proc, root) == 1.5


def test_cgroup_quota_v1(tmp_path):
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "cpu" / "x").mkdir(parents=True)
    proc.write_text("4:cpu,cpuacct:/x\n")
    (root / "cpu" / "x" / "cpu.cfs_quota_us").write_text("200000\n")
    (root / "cpu" / "x" / "cpu.cfs_period_us").write_text("100000\n")
    assert limits.cgroup_quota(proc, root) == 2.0


@pytest.mark.parametrize("text", ["", "max 100000", "garbage", "100000", "-1 100000", "100000 0", "0 100000"])
def test_a_quota_that_is_none(tmp_path, text):
    (tmp_path / "cgroup").write_text("0::/\n3:cpu:/\n")
    (tmp_path / "cpu.max").write_text(text + "\n")
    (tmp_path / "cpu").mkdir()
    for name, number in zip(("cpu.cfs_quota_us", "cpu.cfs_period_us"), [*text.split(), "x", "x"], strict=False):
        (tmp_path / "cpu" / name).write_text(number + "\n")
    assert limits.cgroup_quota(tmp_path / "cgroup", tmp_path) is None


def test_no_cgroup_sets_no_limit(tmp_path):
    assert limits.cgroup_quota(tmp_path / "absent", tmp_path) is None


def test_what_is_unreadable_or_short_sets_no_limit(tmp_path):
    (tmp_path / "cgroup").write_text("\n0\n1:cpu\n0::/\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert limits.cgroup_quota(tmp_path / "cgroup", tmp_path) == 1.5
    (tmp_path / "cpu0" / "topology" / "thread_siblings_list").mkdir(parents=True)  # no one reads a folder as a file
    assert limits.physical_cores({0, 1}, tmp_path) == 2


def test_physical_cores_count_hyper_threads_once(tmp_path):
    for processor, siblings in {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}.items():
        folder = tmp_path / f"cpu{processor}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert limits.physical_cores({0, 1, 2, 3}, tmp_path) == 2
    assert limits.physical_cores({0, 2}, tmp_path) == 1
