"""Metrics of a run as JSON lines, and for TensorBoard where asked. Knows nothing of what they measure."""

import json
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends one JSON object a line to run/metrics.jsonl; after a resume, lines past that step are dropped."""

    def __init__(self, run: Path, *, step: int = 0, tensorboard: bool = False):
        run.mkdir(parents=True, exist_ok=True)
        path = run / FILE
        kept = [row for row in read_metrics(run) if row["step"] <= step] if step else []
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._board = _open_tensorboard(run) if tensorboard else None

    def write(self, step: int, **values: Any) -> None:
        """One line: {"step": step, ...}."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
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

    ValueError names the first line that is not JSON.
    """
    path = Path(run) / FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows += [json.loads(line)] if line else []
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
    return rows


def _open_tensorboard(run: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError('tensorboard=True needs tensorboardX: pip install "fastmixer[tensorboard]"') from error
    return SummaryWriter(str(run / "tensorboard"))
