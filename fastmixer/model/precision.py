"""In what precision a model that learns multiplies, where its processor may lack the instructions. Knows no model."""

import warnings

from fastmixer.ops.attention import PRECISIONS
from fastmixer.ops.bfloat16 import is_fast
from fastmixer.ops.checks import check_choice


def usable_precision(owner: str, precision: str, force: bool) -> str:
    """precision, or float32 with a warning where it would only be slower. owner: whose argument it is, as errors say."""
    check_choice(owner, "precision", precision, PRECISIONS)
    if precision == "float32" or force or is_fast():
        return precision
    warnings.warn(
        "precision 'bfloat16' has no instructions here (see fm.show_config()); going on in float32. "
        "force_precision=True computes it all the same, slower than float32.",
        RuntimeWarning,
        stacklevel=3,
    )
    return "float32"
