"""A run's folder: one run at a time, whoever else tries."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from fastmixer.train import run_folder
from fastmixer.train.run_folder import LOCK, locked

pytest.importorskip("fcntl")
HOLDS = """
import sys
from pathlib import Path
from fastmixer.train.run_folder import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.readline()
"""
REFUSED = "is in use: another run writes there; wait for its end, or choose another folder$"


def test_another_process_is_refused_until_the_first_has_died(tmp_path):
    run = tmp_path / "new" / "run"
    command = [sys.executable, "-c", HOLDS, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(OSError, match=f"^{run} {REFUSED}"), locked(run):
            raise AssertionError
        other.send_signal(signal.SIGKILL)
        other.wait()
        with locked(run):
            assert [path.name for path in run.iterdir()] == [LOCK]


def test_a_thread_may_come_in_again_and_another_may_not(tmp_path):
    found = []

    def other():
        try:
            with locked(tmp_path):
                found.append("in")
        except OSError as error:
            found.append(str(error))

    def elsewhere():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with locked(tmp_path):
        with locked(tmp_path / "." / "x" / ".."):
            elsewhere()
        elsewhere()
    elsewhere()
    assert len(found) == 3 and found[0] == found[1] and found[0].startswith(f"{tmp_path} is in use") and found[2] == "in"


def test_a_child_is_not_taken_for_its_parent(tmp_path):
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            try:
                with locked(tmp_path):
                    os._exit(0)
            except OSError:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_a_child_that_lives_on_holds_nothing(tmp_path):
    reading, writing = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # until the parent closes its end
            os._exit(0)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.close(writing)
        os.waitpid(child, 0)
        os.close(reading)


def test_where_nothing_can_be_locked_a_warning_says_so(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_folder.fcntl, "flock", no_locks)
    with pytest.warns(RuntimeWarning, match=f"^{tmp_path / LOCK} cannot be locked"), locked(tmp_path):
        pass
