"""`fastmixer quickstart`, cut short: every station of the walk is there, and so is what it leaves behind."""

import importlib.util
import re

import pytest

import fastmixer as fm
from fastmixer import chart
from fastmixer.quickstart import quickstart


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


def test_what_to_try_next_lines_up(walked):
    (lines,) = re.findall(r"((?:^  fastmixer .*\n)+)", walked[1], re.M)
    assert len(lines.splitlines()) == 4
    assert len({len(line) - len(re.split(r" {3,}", line.strip())[1]) for line in lines.splitlines()}) == 1


def test_the_same_seed_takes_the_same_walk(walked, tmp_path):
    lines = []
    again = quickstart(tmp_path / "run", steps=12, seed=0, say=lines.append, progress=False)
    assert again.before in walked[1].replace("\n    ", "\n")
    assert f"{again.unigram_entropy:.2f} nats" in walked[1]
    assert (fm.Transformer.load(again.folder).parameters.data == fm.Transformer.load(walked[0]).parameters.data).all()


def test_without_matplotlib_it_draws_with_text(tmp_path, monkeypatch):
    monkeypatch.setattr(chart, "find_spec", lambda name: None)
    lines = []
    quickstart(tmp_path / "run", steps=2, say=lines.append, progress=False)
    assert not (tmp_path / "run" / "loss.png").exists()
    told = "\n".join(lines)
    assert ". training   o validation   - counting pieces alone" in told and 'pip install "fastmixer[plot]"' in told
    assert "loss.png" not in told


def test_a_folder_that_holds_a_run_is_left_alone(walked, run):
    folder, _ = walked
    before = (folder / "metrics.jsonl").read_bytes()
    result = run("quickstart", "--out", folder, "--steps", 2)
    assert result.exit_code == 1
    assert result.stderr == f"Error: {folder} already holds a run; resume it, or choose another folder\n"
    assert (folder / "metrics.jsonl").read_bytes() == before
