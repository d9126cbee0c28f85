"""Numbers as text that a page reads back exactly: little-endian bytes in base64.

    pack(np.array([1, 2, 300]))     # {"type": "u2", "data": "AQACACwB"}

Lifts of expert pairs are the exception: a byte each, on a logarithmic scale.
"""

# Shapes: E experts, P = E (E - 1) / 2 pairs i < j in row order.

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moectl.routing.metrics.coactivation import lift

# A byte q is a lift of 2^((q - LIFT_ONE) / LIFT_STEPS), right to 1.8 %; 0: never together; 255: one of the two never ran.
LIFT_STEPS = 20
LIFT_ONE = 128
LIFT_NEVER, LIFT_UNDEFINED = 0, 255


def pack(values: NDArray[Any]) -> dict[str, str]:
    """Whole numbers in the smallest of u1, u2, u4 that holds them; floats as they are, f2, f4 or f8. NaN stays NaN."""
    values = np.asarray(values).reshape(-1)
    if values.dtype.kind in "iu":
        largest = int(values.max(initial=0))
        assert values.min(initial=0) >= 0
        kind = "u1" if largest < 1 << 8 else "u2" if largest < 1 << 16 else "u4" if largest < 1 << 32 else "f8"
    else:
        kind = f"f{values.dtype.itemsize}"
    return {"type": kind, "data": base64.b64encode(values.astype(f"<{kind}").tobytes()).decode("ascii")}


def packed_bytes(n: int, itemsize: int) -> int:
    """Characters that `pack` makes of n numbers of this size, names and quotes aside."""
    return 4 * ((n * itemsize + 2) // 3)


def quantised_lifts(counts_EE: NDArray[np.int64], tokens: int) -> NDArray[np.uint8]:
    """The lift of every pair of a layer as a byte, [P]. `counts_EE`: co-activation, diagonal = tokens of the expert."""
    lift_P = lift(counts_EE, tokens)[np.triu_indices(counts_EE.shape[0], k=1)]
    steps_P = np.rint(np.log2(np.where(lift_P > 0, lift_P, 1.0)) * LIFT_STEPS) + LIFT_ONE
    byte_P = np.clip(steps_P, LIFT_NEVER + 1, LIFT_UNDEFINED - 1)
    return np.where(np.isnan(lift_P), LIFT_UNDEFINED, np.where(lift_P == 0, LIFT_NEVER, byte_P)).astype(np.uint8)
