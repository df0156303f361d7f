"""`fastmixer quickstart`, cut short: every station of the walk is there, and so is what it leaves behind."""

import importlib.util
import re

import pytest

import fastmixer as fm
from fastmixer import chart


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    from click.testing import CliRunner

    from fastmixer.cli.main import main

    folder = tmp_path_factory.mktemp("quickstart") / "run"
    result = CliRunner().invoke(main, ["quickstart", "--out", str(folder), "--steps", "12"])
    assert result.exit_code == 0, result.output
    return folder, result.stdout


@pytest.mark.parametrize(
    "station",
    [
        r"^  characters +30 pieces of +\d+   A\|l\|i\|c\|e", r"^  words +\d+ pieces", r"^  bpe +\d+ pieces",
        r"as ids: \d+ \d+", r"^The table is 1024 rows of \d+ numbers", r"^  place 1  [+-]0\.\d{3} ",
        r"^  _the +\d\.\d\d +\d\.\d\d", r"the untrained model expects: ", r"the untrained model writes:",
        r"has a validation loss of \d\.\d\d nats", r"validation loss \d\.\d\d -> \d\.\d\d nats a piece",
        r"^  before  .*\n  after   ", r"fastmixer generate \S+ \"The Queen\"", r"The whole walk took \d+ seconds\.",
    ],
)  # fmt: skip
def test_stations(walked, station):
    assert re.search(station, walked[1], re.M), walked[1]


def test_what_it_leaves(walked):
    folder, _ = walked
    names = {path.name for path in folder.iterdir()}
    assert {"run.json", "metrics.jsonl", "data", "checkpoints"} <= names
    assert ("loss.png" in names) == (importlib.util.find_spec("matplotlib") is not None)
    assert fm.load(folder).config.context == 128


def test_attention_rows_sum_to_one(walked):
    rows = re.findall(r"^  [_\w]+ ((?: +\d\.\d\d)+)$", walked[1], re.M)
    assert len(rows) >= 4
    for row in rows:
        assert sum(map(float, row.split())) == pytest.approx(1, abs=0.03)


def test_a_second_walk_takes_another_folder(monkeypatch, tmp_path):
    from fastmixer.cli.quickstart import _unused_folder

    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "quickstart-2", "quickstart-3"):
        assert _unused_folder().name == name
        (tmp_path / "runs" / name).mkdir(parents=True)


def test_without_matplotlib_the_curve_is_text(tmp_path, monkeypatch):
    monkeypatch.setattr(chart, "find_spec", lambda name: None)
    assert chart.save_loss_curve(tmp_path / "loss.png", [(1, 3.0)], [(0, 4.0)], 3.5) is None
    text = chart.text_chart([(i, 4 - i / 50) for i in range(1, 101)], [(0, 4.0), (100, 2.5)], 3.5)
    lines = text.splitlines()
    assert lines[0].startswith("  4.00 |") and "o" in lines[0] and any("-" * 60 in line for line in lines)
    assert lines[-1] == "        . training   o validation   - counting pieces alone"
    assert max(map(len, lines)) <= 80


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    path = chart.save_loss_curve(tmp_path / "loss.png", [(1, 3.0), (2, 2.5)], [(0, 4.0), (2, 2.6)], 3.5)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
