"""Loss curves and profiles as pictures where matplotlib is installed; loss curves as lines of text otherwise."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Points = Sequence[tuple[int, float]]

INK, MUTED, TRAIN, VALIDATION = "#1f2933", "#9aa5b1", "#7fb3d5", "#c0392b"
CHART_WIDTH, CHART_HEIGHT = 64, 14


def save_loss_curve(path: Path, losses: Points, validation: Points, unigram_entropy: float) -> Path | None:
    """Draw training and validation loss (nats a token) over steps into path; None if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*losses, strict=True), color=TRAIN, linewidth=1.2, label="training, one batch")
    axes.plot(*zip(*validation, strict=True), color=VALIDATION, linewidth=2, marker="o", label="validation")
    axes.axhline(unigram_entropy, color=MUTED, linestyle="--", linewidth=1.2)
    axes.annotate(
        "counting pieces alone", (1, unigram_entropy), xycoords=("axes fraction", "data"), xytext=(-6, 5),
        textcoords="offset points", ha="right", color=INK, fontsize=9,
    )  # fmt: skip
    axes.annotate(
        f"{validation[-1][1]:.2f}", validation[-1], xytext=(0, 9), textcoords="offset points", ha="center",
        color=VALIDATION, fontsize=9,
    )  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.set_title("A small GPT learns Alice in Wonderland", loc="left", color=INK)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return path


def require_picture(path: Path) -> None:
    """ValueError for a file that is neither .png nor .svg: to be asked before the work that is to be drawn."""
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"a chart must be a .png or .svg file; got {path}")


def save_profile(path: Path, rows: Sequence[Any], seconds: float, steps: int) -> Path | None:
    """Draw a profile's rows (label, seconds, floor, limit) as bars: the whole bar is time, its dark part what the machine's
    limit would take. None if matplotlib is not installed; ValueError for a file that is neither .png nor .svg."""
    require_picture(path)
    if find_spec("matplotlib") is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.seconds > 0.002 * seconds][::-1]
    figure = Figure(figsize=(9, 0.5 + 0.38 * len(shown)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, row in enumerate(shown):
        scale = 1e3 / steps
        axes.barh(place, row.seconds * scale, color=TRAIN, height=0.7)
        axes.barh(place, min(row.floor, row.seconds) * scale, color=INK, height=0.7)
        note = f"{row.seconds * scale:,.1f} ms" + (f", {row.share:.0%} of {row.limit}" if row.floor else "")
        axes.annotate(note, (row.seconds * scale, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [row.label for row in shown])
    axes.set_xlim(0, max(row.seconds for row in shown) * 1e3 / steps * 1.35)
    axes.set_xlabel("milliseconds a step; dark: what the machine's limit would take")
    axes.set_title(f"Where a step of {seconds / steps * 1e3:,.0f} ms goes", loc="left", color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path)
    return path


def text_chart(losses: Points, validation: Points, unigram_entropy: float) -> str:
    """The same as text: . training, o validation, - what counting pieces alone gives."""
    values = [loss for _, loss in [*losses, *validation]] + [unigram_entropy]
    low, high = min(values), max(values)
    last = max(step for step, _ in [*losses, *validation])
    grid = [[" "] * CHART_WIDTH for _ in range(CHART_HEIGHT)]

    def row(loss: float) -> int:
        return round((high - loss) / ((high - low) or 1) * (CHART_HEIGHT - 1))

    grid[row(unigram_entropy)] = ["-"] * CHART_WIDTH
    for points, mark in ((losses, "."), (validation, "o")):
        for step, loss in points:
            grid[row(loss)][round(step / max(1, last) * (CHART_WIDTH - 1))] = mark
    lines = []
    for index, cells in enumerate(grid):
        label = f"{high - index / (CHART_HEIGHT - 1) * (high - low):6.2f}" if index % 3 == 0 else " " * 6
        lines.append(f"{label} |{''.join(cells).rstrip()}")
    lines.append(" " * 7 + "+" + "-" * CHART_WIDTH)
    lines.append(f"{'':8}0{'step':^{CHART_WIDTH - 8}}{last:>7}")
    return "\n".join([*lines, "        . training   o validation   - counting pieces alone"])
