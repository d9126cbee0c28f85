"""Values as JSON can hold them."""

from __future__ import annotations

import math
from typing import Any


def null_for_nan(value: Any) -> Any:
    """`value` with None for every NaN, in objects and lists of any depth."""
    match value:
        case dict():
            return {key: null_for_nan(item) for key, item in value.items()}
        case list() | tuple():
            return [null_for_nan(item) for item in value]
        case float() if math.isnan(value):
            return None
    return value
