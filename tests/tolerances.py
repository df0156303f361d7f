"""Every numeric limit of the test suite stands here.

An implementation is measured against the float64 reference, and its error may be at most twice that of plain NumPy
float32 (four times for gradients), plus a few units in the last place of the result's scale.
"""

import numpy as np

FORWARD_FACTOR = 2.0  # times the error of the NumPy reference run in float32
GRADIENT_FACTOR = 4.0
FEW_ULP = 8.0  # float32 ulps of the largest expected magnitude, for results that NumPy happens to hit exactly
# Where float32's last bit decides how a number is rounded to bfloat16, two results differ by 2^-8 in that term. Shares of
# the result's norm: attention's weights are rounded against another running maximum; in gradients few terms are on the edge.
BFLOAT16_BLEND = 2.0**-8
BFLOAT16_GRADIENT = 2.0**-12
CENTRAL_DIFFERENCE_RELATIVE = 1e-6  # float64 central differences against analytic gradients
CENTRAL_DIFFERENCE_STEP = 1e-5
ORACLE_LOGITS = 1e-4  # absolute, against torch float32
ORACLE_GRADIENT_RELATIVE = 1e-4  # of the gradient's largest magnitude
ORACLE_LOSS = 1e-5

EPSILON = float(np.finfo(np.float32).eps)


def assert_close_to_float64(
    actual, float32_reference, float64_reference, *, gradient=False, ulp=FEW_ULP, terms=0.0, name="result"
):
    """actual: float32 [...] is as near to float64_reference as float32_reference, times the factor, plus a few ulp.

    Errors are compared at their maximum over the array; NaN and infinities must agree exactly with the float64 truth.
    terms: the magnitude of what is added up, where it may cancel to a much smaller result: the ulp are then of that.
    """
    actual, truth = np.asarray(actual), np.asarray(float64_reference, np.float64)
    assert actual.shape == truth.shape, f"{name}: shape {actual.shape}, expected {truth.shape}"
    if truth.size == 0:
        return
    finite = np.isfinite(truth)
    np.testing.assert_array_equal(
        actual[~finite].astype(np.float64), truth[~finite], err_msg=f"{name}: non-finite values"
    )
    if not finite.any():
        return
    assert np.isfinite(actual[finite]).all(), f"{name}: not finite where the truth is"
    numpy_error = np.abs(np.asarray(float32_reference, np.float64)[finite] - truth[finite]).max()
    error = np.abs(actual.astype(np.float64)[finite] - truth[finite]).max()
    factor = GRADIENT_FACTOR if gradient else FORWARD_FACTOR
    limit = factor * numpy_error + ulp * EPSILON * max(terms, np.abs(truth[finite]).max())
    assert error <= limit, f"{name}: error {error:.3g} > {limit:.3g} (NumPy float32 has {numpy_error:.3g})"


def assert_gradient_matches(analytic, numeric, *, name="gradient"):
    """analytic and numeric (central differences), both float64 [...], agree relative to the largest magnitude."""
    scale = max(1.0, float(np.abs(numeric).max(initial=0.0)))
    error = float(np.abs(np.asarray(analytic) - np.asarray(numeric)).max(initial=0.0))
    assert error <= CENTRAL_DIFFERENCE_RELATIVE * scale, f"{name}: off by {error:.3g} at scale {scale:.3g}"


def central_differences(function, x, step=CENTRAL_DIFFERENCE_STEP):
    """d function() / d x by central differences; function reads x: float64 [...] (changed in place and restored)."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        before = x[index]
        x[index] = before + step
        above = function()
        x[index] = before - step
        below = function()
        x[index] = before
        gradient[index] = (above - below) / (2 * step)
    return gradient
