"""Time per token of a training step at short and at long context, and what of its growth is attention's.

Everything but attention does the same for each token, however many there are. Knows the cases only; fastmixer/ops/profile.py
does the timing.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fastmixer.model import ModelConfig, Transformer
from fastmixer.ops.profile import Profile, profiled
from fastmixer.train import AdamW

SHORT, LONG = 1024, 4096
CASES = ((SHORT, False), (SHORT, True), (LONG, True))  # tokens, checkpointed activations
ROUNDS = 3
SLACK = 1.05  # what may still be the machine's noise in the time of everything but attention


@dataclass
class Case:
    """One length. Seconds a token, one for each round: of the whole step, and of attention forward and backward."""

    time: int
    checkpointed: bool
    whole: list[float] = field(default_factory=list)
    attention: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median seconds a token."""
        return statistics.median(self.whole)

    @property
    def attention_seconds(self) -> float:
        """Median seconds a token in attention."""
        return statistics.median(self.attention)

    @property
    def rest_seconds(self) -> float:
        """Median seconds a token in everything else."""
        return statistics.median(a - b for a, b in zip(self.whole, self.attention, strict=True))

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median."""
        return (max(self.whole) - min(self.whole)) / self.seconds

    def __str__(self) -> str:
        return f"1x{self.time}{', checkpointed' if self.checkpointed else ''}"


@dataclass(frozen=True)
class Growth:
    """How time per token grows from the second case to the last, both with checkpointed activations."""

    cases: list[Case]

    @property
    def ratio(self) -> float:
        """Time per token of the last case over that of the second."""
        return self.cases[-1].seconds / self.cases[1].seconds

    @property
    def rest_ratio(self) -> float:
        """The same without attention: 1 if attention alone makes the difference."""
        return self.cases[-1].rest_seconds / self.cases[1].rest_seconds

    @property
    def reached(self) -> bool:
        """Whether time per token grows by attention's share only."""
        return self.rest_ratio <= SLACK

    def __str__(self) -> str:
        short, long = self.cases[1], self.cases[-1]
        verdict = "yes" if self.reached else "NO"
        return (
            f"{short.time} -> {long.time} tokens: {self.ratio:.2f}x a token; attention "
            f"{_ms(short.attention_seconds)} -> {_ms(long.attention_seconds)}, everything else "
            f"{_ms(short.rest_seconds)} -> {_ms(long.rest_seconds)}: {self.rest_ratio:.2f}x <= {SLACK:g}x {verdict}"
        )


def measure(
    rounds: int = ROUNDS,
    config: ModelConfig | None = None,
    cases: tuple[tuple[int, bool], ...] = CASES,
) -> Growth:
    """Steps of batch 1 at GPT-2 124M's widths (or config's), the lengths in turn."""
    config = config or ModelConfig.preset("gpt2", context=max(time for time, _ in cases))
    model = Transformer(config, seed=0)
    optimizer = AdamW(model.parameters, learning_rate=3e-4)
    rng = np.random.default_rng(0)
    found = [Case(time, checkpointed) for time, checkpointed in cases]
    for _ in range(rounds):
        for case in found:
            model.checkpoint_activations = case.checkpointed
            ids, targets = rng.integers(0, config.vocab, (2, 1, case.time))

            def step(ids: np.ndarray = ids, targets: np.ndarray = targets) -> None:
                model.forward_backward(ids, targets)
                optimizer.step()

            step()  # makes this length's arrays
            _add_round(case, step)
    return Growth(found)


def _add_round(case: Case, step: Callable[[], None]) -> None:
    profile = Profile()
    with profiled(profile):
        step()
    attention = sum(row.seconds for row in profile.rows() if row.label.startswith("attention"))
    case.whole.append(profile.seconds / case.time)
    case.attention.append(attention / case.time)


def table(growth: Growth) -> str:
    """Aligned lines, a case each, and the verdict."""
    lines = [f"{'GPT-2 124M, time per token':<28}{'whole step':>12}{'attention':>12}{'the rest':>12}{'spread':>9}"]
    lines += [
        f"{case!s:<28}{_ms(case.seconds):>12}{_ms(case.attention_seconds):>12}{_ms(case.rest_seconds):>12}"
        f"{case.spread:>9.0%}"
        for case in growth.cases
    ]
    return "\n".join([*lines, str(growth)])


def markdown(growth: Growth) -> str:
    """A section of the page of results."""
    lines = [
        "",
        "## Long context",
        "",
        "Training steps of GPT-2 124M's widths, float32: time per token, the median of rounds in turn.",
        "",
        "| batch x time | whole step | attention | everything else | spread |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {case} | {_ms(case.seconds)} | {_ms(case.attention_seconds)} | {_ms(case.rest_seconds)} | {case.spread:.0%} |"
        for case in growth.cases
    ]
    return "\n".join([*lines, "", f"{growth}."]) + "\n"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
