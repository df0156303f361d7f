"""`fastmixer bench`: one row a workload, and the same figures as JSON."""

import json

import pytest

from fastmixer.cli.bench import ALL_OPTIONS, MODES, bench


def test_a_table_and_its_json(run, tmp_path):
    path = tmp_path / "figures.json"
    result = run("bench", "sampling", "positions", "--rounds", 2, "--json", path)
    assert result.exit_code == 0, result.output
    header = next(line for line in result.output.splitlines() if line.startswith("op "))
    assert header.split()[:4] == ["op", "workload", "NumPy", "Numba"] and "of peak" in header
    figures = json.loads(path.read_text())
    assert [row["op"] for row in figures["rows"]] == ["sampling", "positions"]
    for row in figures["rows"]:
        assert row["workload"] in result.output
        assert row["ratio_to_numpy"]["jit"] > 0 and row["seconds"]["reference"] > 0
        assert row["bandwidth_gb_per_s"] > 1 and row["peak_gflops"] > 1 and 0 < row["share_of_limit"]["jit"]
    assert "GFLOP/s float32 FMA" in result.output.splitlines()[-2]


@pytest.fixture
def nothing_runs(monkeypatch):
    """What is refused is refused before any work."""
    for name in ("profile.profile_step", "runner.run", "long.measure", "against.run", "inference.Bench.rows"):
        monkeypatch.setattr(f"fastmixer.bench.{name}", lambda *rest, **options: pytest.fail("it went to work"))


TABLE, GENERATE, ENGINES = "the table of ops", "`bench generate`", "--against llama.cpp or openvino"
LIBRARIES = "--against torch, openblas-avx2, machine or numba"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--profile", "--json", "f.json"], f"--json is not of --profile; it is of {TABLE}"),
        (["--profile", "--every-level"], f"--every-level is not of --profile; it is of {TABLE}"),
        (["step", "--profile", "--markdown", "f.md"], f"--markdown is not of --profile; it is of {LIBRARIES} and of {ENGINES} and of {GENERATE} and of `bench embed`"),
        (["--against", "machine", "--json", "f.json"], f"--json is not of {LIBRARIES}; it is of {TABLE}"),
        (["--against", "machine", "--profile"], f"--profile is not of {LIBRARIES}; it is of `bench step`"),
        (["--against", "machine", "--chart", "f.png"], f"--chart is not of {LIBRARIES}; it is of --profile"),
        (["--against", "machine", "--model", __file__], f"--model is not of {LIBRARIES}; it is of {ENGINES} and of {GENERATE}"),
        (["--against", "openvino", "--long"], f"--long is not of {ENGINES}; it is of {LIBRARIES} and of `bench step`"),
        (["--long", "--profile"], "--profile is not of --long; it is of `bench step`"),
        (["--long", "--rounds", "15"], f"--rounds is not of --long; it is of {TABLE} and of {LIBRARIES} and of {ENGINES} and of {GENERATE} and of `bench embed`"),
        (["generate", "--batch", "4"], f"--batch is not of {GENERATE}; it is of --profile"),
        (["norm", "--model", __file__], f"--model is not of {TABLE}; it is of {ENGINES} and of {GENERATE}"),
        (["norm", "--chart", "f.png"], f"--chart is not of {TABLE}; it is of --profile"),
        (["norm", "--json", "none/f.json"], "--json must be in a folder that exists; got none/f.json"),
        (["--profile", "--chart", "none/f.png"], "--chart must be in a folder that exists; got none/f.png"),
        (["norm", "--profile"], "--profile is of the step: fastmixer bench step --profile; got norm"),
        (["norm", "--long"], "--long is of the step: fastmixer bench step --long; got norm"),
    ],
)  # fmt: skip
def test_what_would_be_ignored_is_refused_by_name(run, nothing_runs, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    result = run("bench", *arguments)
    assert result.exit_code == 2 and result.output.splitlines()[-1] == f"Error: {text}"
    assert not list(tmp_path.iterdir())


def test_a_chart_that_could_not_be_drawn_is_refused_before_the_work(run, nothing_runs, tmp_path):
    path = tmp_path / "x.jpg"
    result = run("bench", "--profile", "--chart", path)
    assert result.exit_code == 1 and result.output == f"Error: a chart must be a .png or .svg file; got {path}\n"


def test_every_option_is_of_some_mode_and_every_mode_takes_options_that_there_are():
    options = {option.name for option in bench.params if option.expose_value} - {"op"}
    assert options == ALL_OPTIONS - {""}
    assert {mode.flag for mode in MODES.values()} == {"", "profile", "long"}
