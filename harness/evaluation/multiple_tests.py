"""Many comparisons at once: Holm's correction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIGNIFICANCE = 0.05


def holm(p_values: npt.ArrayLike) -> list[float]:
    """Holm's step-down correction (Holm, 1979): adjusted p-values, in the order given.

    Rejecting those below alpha keeps the chance of any false rejection below alpha, whatever the dependence between
    the tests. The i-th smallest of m (from 0) is multiplied by m - i; none falls below one that is smaller.

    Args:
        p_values: [m], each from 0 to 1; may be empty.

    Raises:
        ValueError: a number that is no probability.
    """
    p_M = np.asarray(p_values, dtype=np.float64)
    if p_M.ndim != 1 or not ((p_M >= 0) & (p_M <= 1)).all():
        raise ValueError("p_values must be a list of numbers from 0 to 1")
    order = np.argsort(p_M, kind="stable")
    adjusted_M = np.minimum(np.maximum.accumulate(p_M[order] * np.arange(len(p_M), 0, -1)), 1.0)
    result = np.empty_like(adjusted_M)
    result[order] = adjusted_M
    return [float(p) for p in result]
