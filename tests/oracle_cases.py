"""All tiny configurations: a name that starts with the family, its `model_type`, and the keys of its configuration."""

from __future__ import annotations

from oracle_cases_classic import CLASSIC_CASES
from oracle_cases_deepseek import DEEPSEEK_CASES
from oracle_cases_dense import DENSE_CASES
from oracle_cases_singular import SINGULAR_CASES

MOE_CASES = {**CLASSIC_CASES, **DEEPSEEK_CASES, **SINGULAR_CASES}
CASES = {**DENSE_CASES, **MOE_CASES}
