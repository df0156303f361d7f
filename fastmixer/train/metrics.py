"""Metrics of a run as JSON lines, and for TensorBoard where asked. Knows nothing of what they measure."""

import json
import warnings
from pathlib import Path
from typing import Any

from fastmixer.weights.files import replace_file

FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends one JSON object a line to run/metrics.jsonl; after a resume, lines past that step are dropped, and with a
    warning those that cannot be read: a broken log is no reason not to go on."""

    def __init__(self, run: Path, *, step: int = 0, tensorboard: bool = False):
        board = tensorboard_writer() if tensorboard else None
        run.mkdir(parents=True, exist_ok=True)
        self._path = run / FILE
        rows, problems = _read(self._path) if step else ([], [])
        if problems:
            which = "This line is" if len(problems) == 1 else f"This line and {len(problems) - 1} more are"
            warnings.warn(f"{problems[0]}. {which} left out; the run goes on", RuntimeWarning, stacklevel=3)
        replace_file(self._path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))
        self._file = self._path.open("ab", buffering=0)  # a buffer would be written again, and fail again, on closing
        self._board = None if board is None else board(str(run / "tensorboard"))

    def write(self, step: int, **values: Any) -> None:
        """One line: {"step": step, ...}. OSError names the file."""
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, step)
                else:
                    self._board.add_text(name, str(value), step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """All rows of a run's metrics; a last line that a killed process cut off is left out.

    ValueError names the first line that is no JSON object with a step.
    """
    rows, problems = _read(Path(run) / FILE)
    if problems:
        raise ValueError(problems[0])
    return rows


def tensorboard_writer() -> Any:
    """The class that writes TensorBoard's files. ImportError says what to install."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError('tensorboard=True needs tensorboardX: pip install "fastmixer[tensorboard]"') from error
    return SummaryWriter


def _read(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows that can be read, and what is wrong with each line that cannot."""
    if not path.exists():
        return [], []
    rows, problems = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        if not line:
            continue
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}, line {number} is not JSON: {error}")
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
        else:
            problems.append(f"{path}, line {number} must be an object with an integer 'step'; got {line.decode()[:80]}")
    return rows, problems
