"""`fastmixer bench`: one row a workload, and the same figures as JSON."""

import json


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
