"""The table that `fastmixer bench` prints, and the same as JSON, for every set of columns that a machine may have."""

import json

import pytest

from fastmixer.bench import runner, table
from fastmixer.bench.runner import Timing
from fastmixer.bench.workload import Workload

ALL = {"reference": 0.4, "jit": 0.2, "native-x86_64_v4": 0.05, "native-x86_64_v3": 0.1, "native-portable": 0.8}


def timing(names, target=None):
    workload = Workload("matmul", "a product", lambda rng: lambda: None, flops=4e8, bytes=1e7, target=target)
    seconds = {name: ALL[name] for name in names}
    return Timing(workload, seconds, dict.fromkeys(names, 0.1234), peak_flops=1e10, bandwidth=1e9)


@pytest.mark.parametrize(
    ("names", "titles", "values"),
    [
        (["reference", "jit"], ["NumPy", "Numba"], ["400 ms", "200 ms"]),
        (["reference", "jit", "native-x86_64_v3"], ["NumPy", "Numba", "Cython"], ["400 ms", "200 ms", "100 ms"]),
        (list(ALL), ["NumPy", "Numba", "v4", "v3", "portable"], ["400 ms", "200 ms", "50 ms", "100 ms", "800 ms"]),
    ],
)
def test_columns_stand_under_their_titles(names, titles, values):
    header, rule = table.header(names).splitlines()
    row = table.row(timing(names), names)
    assert set(rule) == {"-"} and len(rule) == len(header)
    assert header.split()[:2] == ["op", "workload"] and row.startswith("matmul        a product ")
    for title, value in zip(titles, values, strict=True):
        end = header.index(f" {title} ") + 1 + len(title)
        assert row[:end].endswith(f" {value}"), title


def test_the_best_native_level_gives_ratio_and_share():
    row = table.row(timing(list(ALL)), list(ALL)).split()
    assert row[-4:] == ["2.0x", "8.0x", "80%", "FMA"]


def test_without_native_kernels_the_ratio_is_left_empty_and_the_share_is_numbas():
    names = ["reference", "jit"]
    header, row = table.header(names).splitlines()[0], table.row(timing(names, ("ratio", 5)), names)
    assert row.split()[-6:-3] == ["2.0x", "20%", "FMA"]
    assert row[header.index("Cython/NumPy") : header.index("Cython/NumPy") + len("Cython/NumPy")].strip() == ""


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (("ratio", 5), ">= 5x yes"),
        (("ratio", 9), ">= 9x NO"),
        (("peak", 0.75), ">= 75% yes"),
        (("peak", 0.9), ">= 90% NO"),
    ],
)
def test_targets(target, text):
    assert table.row(timing(list(ALL), target), list(ALL)).endswith(f"FMA     {text}")


def test_rows_are_json_and_have_every_figure():
    (row,) = json.loads(json.dumps(table.rows([timing(list(ALL), ("ratio", 5))])))
    assert (row["op"], row["workload"], row["limit"]) == ("matmul", "a product", "FMA")
    assert row["seconds"] == ALL and row["spread"]["jit"] == 0.123
    assert row["ratio_to_numpy"]["native-x86_64_v4"] == 8.0 and row["ratio_to_numpy"]["reference"] == 1.0
    assert row["share_of_limit"]["native-x86_64_v4"] == 0.8 and row["peak_gflops"] == 10.0
    assert row["target"] == ["ratio", 5] and row["reaches_target"] is True


def test_columns_are_three_unless_every_level_is_asked_for(monkeypatch):
    monkeypatch.setattr(runner, "implementations", lambda op: tuple(ALL))
    assert runner.columns() == ["reference", "jit", "native-x86_64_v4"]
    assert runner.columns(every_level=True) == list(ALL)
