"""Time per token at two lengths: what is attention's, what is not, and the verdict on it."""

import pytest

from fastmixer.bench import long
from fastmixer.bench.long import Case, Growth
from fastmixer.model import ModelConfig


def growth(rest=1.0):
    cases = [Case(8, False, [1.0, 1.1, 0.9], [0.1] * 3), Case(8, True, [1.3] * 3, [0.3] * 3)]
    return Growth([*cases, Case(32, True, [0.9 + rest] * 3, [0.9] * 3)])


def test_the_verdict_is_on_everything_but_attention():
    found = growth()
    assert found.ratio == pytest.approx(1.9 / 1.3) and found.rest_ratio == pytest.approx(1) and found.reached
    assert str(found) == (
        "8 -> 32 tokens: 1.46x a token; attention 300.00 ms -> 900.00 ms, everything else 1000.00 ms -> 1000.00 ms: 1.00x <= 1.05x yes"
    )
    assert not growth(1.06).reached and str(growth(1.06)).endswith("1.06x <= 1.05x NO")
    assert found.cases[0].spread == pytest.approx(0.2)


def test_it_is_shown_as_a_table_and_as_a_section():
    lines = long.table(growth()).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["1x8", "1x8,", "1x32,"] and len(
        {len(line) for line in lines[:4]}
    ) == 1
    assert lines[4] == str(growth())
    section = long.markdown(growth())
    assert "| 1x32, checkpointed | 1900.00 ms | 900.00 ms | 1000.00 ms | 0% |\n" in section and "yes." in section


def test_a_small_model_is_measured():
    config = ModelConfig(vocab=97, context=64, dim=32, layers=2, heads=2)
    found = long.measure(2, config, ((16, False), (16, True), (64, True)))
    assert [(case.time, case.checkpointed, len(case.whole)) for case in found.cases] == [
        (16, False, 2), (16, True, 2), (64, True, 2),
    ]  # fmt: skip
    for case in found.cases:
        assert all(0 < part < whole for part, whole in zip(case.attention, case.whole, strict=True))
