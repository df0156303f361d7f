"""YaRN's factors against the paper's formula, as transformers and llama.cpp write it; and extremes."""

import math

import numpy as np
import pytest

from fastmixer.weights.architectures import read_config
from fastmixer.weights.rotation import yarn_factors


def written_out(rotary_dim, base, factor, original, fast, slow, truncate):
    def number(turns):
        return rotary_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = (math.floor(number(fast)), math.ceil(number(slow))) if truncate else (number(fast), number(slow))
    low, high = max(low, 0), min(high, rotary_dim - 1)
    found = []
    for i in range(rotary_dim // 2):
        share = min(max((i - low) / (high - low), 0), 1)
        found.append(1 / (share / factor + 1 - share))
    return found


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(("fast", "slow"), [(32.0, 1.0), (8.0, 0.5)])
@pytest.mark.parametrize(("rotary_dim", "base", "original"), [(16, 1e4, 64), (128, 1e6, 32768), (96, 5e5, 4096)])
def test_the_formula(rotary_dim, base, original, fast, slow, truncate):
    found = yarn_factors(rotary_dim, base, 4.0, original, fast_turns=fast, slow_turns=slow, truncate=truncate)
    np.testing.assert_allclose(found, written_out(rotary_dim, base, 4.0, original, fast, slow, truncate), rtol=1e-15)
    assert found[0] == 1 and found[-1] == 4 and found.dtype == np.float64


@pytest.mark.parametrize(
    ("base", "turns", "factors"),
    [(1e4, (5e-324, 5e-324), 1.0), (1e4, (1.7e308, 1.7e308), 4.0), (math.nextafter(1, 2), (32.0, 1.0), 1.0), (1.7e308, (32.0, 1.0), 4.0)],
)  # fmt: skip
def test_extremes_are_numbers(base, turns, factors):
    """Of ramps that lie beyond all frequencies, to either side; the first frequency stays, as where a ramp begins."""
    found = yarn_factors(8, base, 4.0, 1 << 24, fast_turns=turns[0], slow_turns=turns[1])
    assert found.tolist() == [1.0, factors, factors, factors]


def test_a_folder_says_where_the_ramp_is():
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8, "beta_slow": 0.5}
    values = {"model_type": "llama", "vocab_size": 9, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
              "num_attention_heads": 2, "max_position_embeddings": 256}  # fmt: skip
    for truncate in (True, False):
        found = read_config({**values, "rope_scaling": {**rope, "truncate": truncate}}, "config.json")
        expected = written_out(16, 1e4, 4.0, 64, 8.0, 0.5, truncate)
        np.testing.assert_allclose(found.rotary_factors, expected, rtol=1e-15)
        assert found.rotary_magnitude == 1 + 0.1 * math.log(4)
