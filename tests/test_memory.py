"""How much memory there is, by what Linux says of the system and of control groups."""

import pytest

from fastmixer.memory import available_memory


@pytest.fixture
def told(tmp_path):
    """told(files, own) -> what available_memory makes of files that Linux would show; own: /proc/self/cgroup."""

    def tell(files, own="0::/"):
        for name, text in {"meminfo": "MemTotal: 9 kB\nMemAvailable:   1000 kB\n", "own": own + "\n", **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return available_memory(tmp_path / "meminfo", tmp_path / "own", tmp_path / "cgroup")

    return tell


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({}, "0::/", 1000 * 1024),
        ({"cgroup/memory.max": "max\n", "cgroup/memory.current": "5\n"}, "0::/", 1000 * 1024),
        ({"cgroup/memory.max": "900\n", "cgroup/memory.current": "500\n"}, "0::/", 400),
        (
            {"cgroup/memory.max": "900", "cgroup/memory.current": "500", "cgroup/memory.stat": "file 300\ninactive_file 200\n"},
            "0::/", 600,
        ),
        ({"cgroup/a/memory.max": "900", "cgroup/a/memory.current": "500"}, "0::/a/b", 400),
        ({"cgroup/memory.max": "100", "cgroup/memory.current": "500"}, "0::/", 0),
        (
            {"cgroup/memory/x/memory.limit_in_bytes": "800", "cgroup/memory/x/memory.usage_in_bytes": "100"},
            "4:cpu,memory:/x\n0::/", 700,
        ),
        # a group of the host's, seen from within a container: its limits are the root's
        ({"cgroup/memory.max": "900", "cgroup/memory.current": "500"}, "0::/docker/x", 400),
        # what says nothing that can be read sets no limit
        ({"cgroup/memory.max": "garbage\n", "cgroup/memory.current": "500"}, "0::/", 1000 * 1024),
        ({"cgroup/memory.max": "900", "cgroup/memory.current": "-\n"}, "0::/", 1000 * 1024),
        ({"cgroup/memory.max": "", "cgroup/memory.current": "500"}, "0::/", 1000 * 1024),
        ({"cgroup/memory.max/folder": "", "cgroup/memory.current": "500"}, "0::/", 1000 * 1024),
        ({"cgroup/memory.max": "900"}, "0::/", 1000 * 1024),
        ({"meminfo": "MemTotal: 9 kB\n"}, "0::/", None),
    ],
)  # fmt: skip
def test_what_is_available(told, files, own, expected):
    assert told(files, own) == expected


def test_the_tightest_of_all_parents_counts(tmp_path):
    meminfo, proc, root = tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "fs"
    assert available_memory(meminfo, proc, root) is None
    meminfo.write_text("MemTotal:       9000 kB\nMemAvailable:   8000 kB\n")
    assert available_memory(meminfo, proc, root) == 8000 * 1024
    group = root / "a" / "b"
    group.mkdir(parents=True)
    proc.write_text("0::/a/b\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("5\n")
    assert available_memory(meminfo, proc, root) == 8000 * 1024
    (root / "a" / "memory.max").write_text("3000000\n")
    (root / "a" / "memory.current").write_text("1000000\n")
    assert available_memory(meminfo, proc, root) == 2000000
    (root / "a" / "memory.stat").write_text("anon 7\ninactive_file 400000\nactive_file 9\n")
    assert available_memory(meminfo, proc, root) == 2400000
    (group / "memory.max").write_text("4\n")
    assert available_memory(meminfo, proc, root) == 0


def test_old_groups(tmp_path):
    folder = tmp_path / "fs" / "memory" / "job"
    folder.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("4:memory:/job\n3:cpu,cpuacct:/\n")
    (folder / "memory.limit_in_bytes").write_text("1000\n")
    (folder / "memory.usage_in_bytes").write_text("300\n")
    (folder / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 50\n")
    assert available_memory(tmp_path / "none", tmp_path / "cgroup", tmp_path / "fs") == 750


def test_this_machine_tells():
    found = available_memory()
    assert found is None or 1 << 20 < found < 1 << 50
