"""Choosing the next token from logits: parameters are judged and randomness is drawn here.

Knows nothing of models or text.
"""

from typing import Any

import numpy as np

from fastmixer.kernels.select import kernels
from fastmixer.ops.checks import Arrays, check_integer, check_number

# A lower temperature than this is greedy in all but name; as float32 it would become 0 and divide by it.
LOWEST_TEMPERATURE = float(np.finfo(np.float32).tiny)


def sample(
    logits: np.ndarray,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    previous_ids: np.ndarray | None = None,
    generator: np.random.Generator | None = None,
    uniform: np.ndarray | None = None,
) -> np.ndarray:
    """One token id for every row of logits: int64 [batch].

    logits: float32 [batch, vocab]; -inf rules a token out, NaN and +inf are errors. What happens, in the order of
    Hugging Face's `generate` (llama.cpp's default is the same, but for the temperature, which it applies last):

    1. repetition_penalty > 0: logits of ids in previous_ids (integer [batch, n], -1 pads) are divided by it if
       positive, multiplied if negative, once each (CTRL, Keskar et al. 2019);
    2. temperature >= 0 divides the logits; at 0 the largest logit is taken and steps 3-6 fall away;
    3. top_k >= 0: only the top_k largest stay (0: all);
    4. top_p in (0, 1]: only the fewest most probable stay whose share of what is left reaches top_p (nucleus
       sampling, Holtzman et al. 2020);
    5. min_p in [0, 1]: only those at least min_p times as probable as the best stay (Nguyen et al. 2024);
    6. one of them is drawn with one number in [0, 1) a row, from generator or given as uniform: float64 [batch].

    Among equals the lower id wins. The same numbers give the same ids, whatever the number of threads.

    Raises TypeError and ValueError for wrong arrays and parameters, IndexError for a previous id out of range,
    ValueError for NaN or +inf among the logits and for a row without a finite one.
    """
    op = "sample"
    check_number(op, "temperature", temperature, at_least=0)
    top_k = check_integer(op, "top_k", top_k, at_least=0)
    check_number(op, "top_p", top_p, above=0, at_most=1)
    check_number(op, "min_p", min_p, at_least=0, at_most=1)
    check_number(op, "repetition_penalty", repetition_penalty, above=0)
    arrays = Arrays(op, "sampling")
    logits = arrays.check("logits", logits, "batch vocab")
    batch, vocab = logits.shape
    if previous_ids is not None:
        previous_ids = arrays.check_ids("previous_ids", previous_ids, "batch previous", vocab, ignore=-1)
    if temperature > 0:
        uniform = _uniform_numbers(op, batch, generator, uniform)
    else:
        uniform = np.zeros(batch)  # greedy draws nothing
    if batch == 0:
        return np.empty(0, np.int64)
    if vocab == 0:
        raise ValueError(f"{op}: logits must have at least one column; got float32 {logits.shape}")

    scores, name = logits.copy(), "logits"  # the kernels work in place
    if previous_ids is not None and repetition_penalty != 1:
        kernels("sampling").penalize_repetition(scores, previous_ids, float(repetition_penalty))
        name = "logits after repetition_penalty"
    _require_finite_best(op, name, scores)
    out = np.empty(batch, np.int64)
    if temperature > 0:
        temperature = max(float(temperature), LOWEST_TEMPERATURE)
    kernels("sampling").sample(scores, float(temperature), min(top_k, vocab), float(top_p), float(min_p), uniform, out)
    return out


def _uniform_numbers(op: str, batch: int, generator: Any, uniform: Any) -> np.ndarray:
    """float64 [batch] in [0, 1): the numbers given, or as many from the generator."""
    if (generator is None) == (uniform is None):
        came = "neither" if generator is None else "both"
        raise ValueError(f"{op}: give generator or uniform when temperature > 0; got {came}")
    if uniform is None:
        if not isinstance(generator, np.random.Generator):
            raise TypeError(f"{op}: generator must be a numpy.random.Generator; got {type(generator).__name__}")
        return generator.random(batch)
    if not isinstance(uniform, np.ndarray) or uniform.dtype != np.float64:
        came = uniform.dtype.name if isinstance(uniform, np.ndarray) else type(uniform).__name__
        raise TypeError(f"{op}: uniform must be float64 [batch={batch}]; got {came}")
    if uniform.shape != (batch,):
        raise ValueError(f"{op}: uniform must be float64 [batch={batch}]; got float64 {uniform.shape}")
    outside = ~((uniform >= 0) & (uniform < 1))
    if outside.any():
        position = int(outside.argmax())
        raise ValueError(f"{op}: uniform must be within [0, 1); uniform[{position}] = {uniform[position]}")
    return np.ascontiguousarray(uniform)


def _require_finite_best(op: str, name: str, logits: np.ndarray) -> None:
    """ValueError naming row and column of the first NaN or +inf, or the first row of nothing but -inf."""
    best = logits.max(axis=1)  # NaN and +inf, where there are any, come out on top
    if np.isfinite(best).all():
        return
    row = int(np.isfinite(best).argmin())
    if best[row] == -np.inf:
        raise ValueError(f"{op}: every row of {name} must have a finite value; row {row} is all -inf")
    column = int((np.isnan(logits[row]) | (logits[row] == np.inf)).argmax())
    value = logits[row, column]
    raise ValueError(f"{op}: {name} must hold neither NaN nor +inf; logits[{row}, {column}] = {value}")
