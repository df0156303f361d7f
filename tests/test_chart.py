"""Loss curves: the same figures as a picture and as text that fits a terminal."""

import pytest

from fastmixer import chart

LOSSES = [(step, 4 - step / 50) for step in range(1, 101)]
VALIDATION = [(0, 4.0), (100, 2.5)]
LEGEND = "        . training   o validation   - counting pieces alone"


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(chart, "find_spec", lambda name: None)
    assert chart.save_loss_curve(tmp_path / "loss.png", LOSSES, VALIDATION, 3.5) is None
    assert not list(tmp_path.iterdir())


def test_text_has_axes_curves_and_a_legend():
    lines = chart.text_chart(LOSSES, VALIDATION, 3.5).splitlines()
    assert len(lines) == chart.CHART_HEIGHT + 3 and max(map(len, lines)) <= 80
    assert lines[0].startswith("  4.00 |o") and [line[:6].strip() for line in lines[:13:3]] == [
        "4.00",
        "3.54",
        "3.08",
        "2.62",
        "2.15",
    ]
    assert lines[-2].split() == ["0", "step", "100"] and lines[-1] == LEGEND


def test_every_point_stands_at_its_step_and_loss():
    lines = chart.text_chart([(0, 2.0), (10, 1.0)], [(5, 3.0)], 1.5).splitlines()
    grid = [line.split("|", 1)[1] for line in lines[: chart.CHART_HEIGHT]]
    last = chart.CHART_HEIGHT - 1
    middle = round(5 / 10 * (chart.CHART_WIDTH - 1))
    assert grid[0].rstrip() == " " * middle + "o"
    assert grid[last].rstrip() == " " * (chart.CHART_WIDTH - 1) + "."
    assert grid[round(last / 2)].startswith(".")
    assert sum(row == "-" * chart.CHART_WIDTH for row in grid) == 1


@pytest.mark.parametrize(
    ("losses", "validation", "entropy"),
    [
        ([(1, 2.0)], [(1, 2.0)], 2.0),  # all the same: no height to divide by
        ([(0, 2.0)], [(0, 3.0)], 2.5),  # no step yet: no width to divide by
        ([(1, 250.0), (2, 0.001)], [(2, 100.0)], 9.0),
    ],
)
def test_odd_figures_are_drawn_all_the_same(losses, validation, entropy):
    lines = chart.text_chart(losses, validation, entropy).splitlines()
    assert any("o" in line.split("|")[-1] for line in lines[: chart.CHART_HEIGHT])
    assert len({line.index("|") for line in lines[: chart.CHART_HEIGHT]}) == 1


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    path = chart.save_loss_curve(tmp_path / "loss.png", LOSSES, VALIDATION, 3.5)
    assert path == tmp_path / "loss.png" and path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
