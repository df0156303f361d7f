"""metrics.jsonl: what is written is read back; a resume drops what comes after its checkpoint."""

import builtins
import errno
import json
import os
import re

import pytest

from fastmixer.train.metrics import FILE, MetricsWriter, read_metrics
from fastmixer.weights import files


def _write(folder, steps, **options):
    writer = MetricsWriter(folder, **options)
    for step in steps:
        writer.write(step, loss=step / 2)
    writer.close()


def test_lines_are_json_and_come_back(tmp_path):
    _write(tmp_path, [1, 2])
    assert [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()] == read_metrics(tmp_path)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]


def test_a_resume_drops_later_steps_and_a_new_run_starts_empty(tmp_path):
    _write(tmp_path, [1, 2, 3])
    _write(tmp_path, [3, 4], step=2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    _write(tmp_path, [1])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]


def test_a_line_that_a_killed_process_cut_is_left_out(tmp_path):
    _write(tmp_path, [1])
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert read_metrics(tmp_path / "absent") == []


def test_a_resume_after_a_cut_line_goes_on_with_whole_lines(tmp_path):
    _write(tmp_path, [1, 2])
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 3, "lo')
    _write(tmp_path, [3], step=2)
    assert [json.loads(line)["step"] for line in (tmp_path / FILE).read_text().splitlines()] == [1, 2, 3]


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, loss=2.0, sample='"a"\nb')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0, "sample": '"a"\nb'}]
    writer.close()


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / FILE).write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match=rf"^{tmp_path / FILE}, line 2 is not JSON: "):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"\xff\xfe", " is not JSON: 'utf-8' codec can't decode byte 0xff"),
        (b"[" * 100_000, " is not JSON: "),
        (b"9" * 5000, " is not JSON: Exceeds the limit"),
        (b'{"x": 1}', " must be an object with an integer 'step'; got {\"x\": 1}"),
        (b'{"step": "1"}', " must be an object with an integer 'step'; got {\"step\": \"1\"}"),
        (b"[]", " must be an object with an integer 'step'; got []"),
    ],
)
def test_a_resume_keeps_what_can_be_read(tmp_path, line, text):
    _write(tmp_path, [1, 2])
    with (tmp_path / FILE).open("ab") as file:
        file.write(line + b"\n" + b'{"step": 3, "loss": 1.5}\n')
    with pytest.raises(ValueError, match=f"^{re.escape(f'{tmp_path / FILE}, line 3{text}')}"):
        read_metrics(tmp_path)
    with pytest.warns(RuntimeWarning, match="^.*line 3.* This line is left out; the run goes on$") as warned:
        _write(tmp_path, [4], step=3)
    assert len(warned) == 1 and [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_log_that_cannot_be_written_stays(tmp_path, monkeypatch):
    _write(tmp_path, [1, 2])

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / FILE}'$"):
        MetricsWriter(tmp_path, step=1)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_a_full_disk_names_the_log(tmp_path):
    resource = pytest.importorskip("resource")
    writer, before = MetricsWriter(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    writer.write(1, loss=1.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, before[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{tmp_path / FILE}'$"):
            writer.write(2, sample="a" * 100)
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_tensorboard_without_tensorboardx_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "tensorboardX":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'^tensorboard=True needs tensorboardX: pip install "fastmixer\[tensorboard\]"$'):
        MetricsWriter(tmp_path, tensorboard=True)
