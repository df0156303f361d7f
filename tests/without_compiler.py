"""Run by .ci/run in an environment where fastmixer was installed with no C compiler: all on Numba, and said loudly."""

import warnings

import numpy as np

import fastmixer as fm
from fastmixer.config_report import OPS
from fastmixer.kernels.select import implementation

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert {implementation(op) for op in OPS} == {"jit"}
assert any("fastmixer runs on Numba" in str(warning.message) for warning in caught), "the missing compiler went unsaid"

model = fm.Transformer(fm.ModelConfig.preset("tiny"), seed=0)
optimizer = fm.AdamW(model.parameters, learning_rate=1e-3)
rng = np.random.default_rng(0)
ids = rng.integers(0, model.config.vocab, (2, 17))
losses = []
for _ in range(10):
    losses.append(model.forward_backward(ids[:, :-1], ids[:, 1:]))
    optimizer.step()
assert losses[-1] < losses[0], losses
print(f"numba alone: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
