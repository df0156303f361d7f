"""Progress bars: silent for a second, then telling of all the work since its begin."""

import sys

import pytest

from fastmixer.progress import LateBar


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; clock(seconds) moves it on."""
    now = [1000.0]
    for held in ("time.time", "tqdm.std.time"):
        monkeypatch.setattr(held, lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def test_short_work_is_silent(clock, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)  # nor is tqdm imported for it
    with LateBar(10, desc="work") as bar:
        for _ in range(10):
            clock(0.09)
            bar.update(1)
    assert capsys.readouterr().err == ""


def test_after_a_second_it_tells_of_everything_since_the_begin(clock, capsys):
    with LateBar(40, desc="work", unit=" texts", ascii=True) as bar:
        for _ in range(6):
            clock(0.25)
            bar.update(5)
        shown = capsys.readouterr().err
    first, _, last = (line for line in shown.split("\r") if line.strip())
    assert first.startswith("work:  50%") and "20/40 [00:01<00:01, 20.00 texts/s]" in first
    assert last.startswith("work:  75%") and "30/40 [00:01<00:00, 20.00 texts/s]" in last


def test_at_once_if_asked_for(clock, capsys):
    with LateBar(4, after=0, desc="work"):
        assert "work:   0%" in capsys.readouterr().err


def test_never_if_not_wanted(clock, capsys):
    with LateBar(4, shown=False, after=0, desc="work") as bar:
        clock(5)
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_bars_of_several_threads_do_not_move_the_cursor(clock, capsys):
    with LateBar(4, after=0, desc="one") as one, LateBar(4, after=0, desc="other") as other:
        clock(2)
        one.update(1)
        other.update(1)
    shown = capsys.readouterr().err
    assert "one:  25%" in shown and "other:  25%" in shown and "\n" not in shown and "\x1b" not in shown
