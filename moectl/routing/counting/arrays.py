"""The arrays that counts are kept in: their names, types and sizes. They all add, and are all 0 at the start.

counts = CountArrays.zeros(sizes(layers, n_domains=2, batches=batches))
counts.tokens_XLE.nbytes
"""

# Shapes: D domains, X blocks of all domains, L MoE layers (by position, not by decoder index), E experts (padded to the largest layer),
# G lags, M ids counted, C token classes, N micro-batches.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moectl.routing.counting import vocabulary
from moectl.routing.counting.blocks import Blocks
from moectl.routing.counting.selection import LAGS
from moectl.routing.token_classes import CLASSES

if TYPE_CHECKING:
    from moectl.data.batching import MicroBatch
    from moectl.model.events import MoELayerInfo

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
CountArray = NDArray[Any]
"""int32, or int64 where a run has so many tokens that int32 might not hold them."""

_TOKEN_TABLES = 4


@dataclass(frozen=True, slots=True, eq=False)
class CountArrays:
    """Sums over the counted tokens. A name ends in its axes.

    A token counts if `counted_BS` of its micro-batch says so; a slot counts if it ran an expert (id not -1). Two tokens of one sequence
    make a pair at a lag if they are so far apart and both count; a token that ran no expert repeats nothing.
    """

    tokens_XLE: IntArray
    first_choice_XLE: CountArray
    """Tokens whose largest weight is the expert's; ties go to the lowest id."""
    scores_XLE: IntArray
    """Normalised scores, in SCORE_UNIT."""
    counted_XL: IntArray
    """Tokens."""
    pairs_XLG: IntArray
    """Pairs of tokens at each of LAGS."""
    overlap_XLG: IntArray
    """Experts they share."""
    repeats_XL: IntArray
    """Neighbours of the same first choice."""
    any_overlap_XL: IntArray
    """Neighbours that share an expert."""

    # Per sequence, see `counting.scores.ScoreSums`.
    entropy_XL: IntArray
    captured_XL: IntArray
    used_experts_XL: IntArray
    used_tokens_XL: IntArray
    agreed_XL: IntArray
    full_tokens_XL: IntArray
    margin_XL: FloatArray
    margin_tokens_XL: IntArray
    fragile_XL: IntArray
    z_squared_XL: FloatArray
    sequence_loss_XL: IntArray
    counted_sequences_XL: IntArray
    """Sequences with a counted token: those `sequence_loss_XL` is a sum over."""
    block_vio_XL: IntArray
    """MaxVio of sequences, in SCORE_UNIT."""
    vio_sequences_XL: IntArray
    """Sequences that ran an expert: those `block_vio_XL` is a sum over."""

    sequence_vio_NL: FloatArray
    """MaxVio of the sequences of a micro-batch, summed; and of how many."""
    sequences_NL: IntArray
    batch_vio_NL: FloatArray
    """MaxVio of a micro-batch as a whole, and whether it is one that counts (0 or 1)."""
    batches_NL: IntArray

    weight_DLE: IntArray
    """Combine weights, in WEIGHT_UNIT."""
    slot_pairs_LEE: IntArray
    """Each pair of a token's experts once, in slot order."""
    classes_LCE: IntArray
    """Tokens of each class that ran the expert."""
    input_LME: CountArray
    """Tokens of an id that ran the expert, and tokens of it that weighted it highest; then the same by the id of the next token."""
    input_first_choice_LME: CountArray
    next_LME: CountArray
    next_first_choice_LME: CountArray

    @classmethod
    def zeros(cls, sizes: Mapping[str, int], *, wide: bool = False) -> CountArrays:
        """`sizes` of the axes, by letter; `wide` gives CountArrays 8 bytes a count instead of 4."""
        return cls(**{name: np.zeros(shape, dtype) for name, (shape, dtype) in _layout(sizes, wide=wide).items()})

    def by_name(self) -> dict[str, NDArray[Any]]:
        """The arrays themselves, not copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def sizes(layers: Sequence[MoELayerInfo], n_domains: int, batches: Sequence[MicroBatch], *, classes: bool = True) -> dict[str, int]:
    """The length of each axis, for M the most it can be. `classes`: whether token classes are counted."""
    n_tokens = sum(batch.ids_BS.size for batch in batches)
    L, E = len(layers), max(info.n_experts for info in layers)
    return {
        "D": n_domains, "X": len(Blocks(n_domains, batches).domain_X), "L": L, "E": E, "G": len(LAGS), "N": len(batches),
        "C": len(CLASSES) if classes else 0, "M": vocabulary.most_ids(L, E, n_tokens, n_tables=_TOKEN_TABLES),
    }  # fmt: skip


def planned_bytes(sizes: Mapping[str, int]) -> int:
    """Memory of the arrays of these sizes."""
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in _layout(sizes, wide=False).values())


def _layout(sizes: Mapping[str, int], *, wide: bool) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    dtypes: dict[str, type[np.generic]] = {
        "IntArray": np.int64, "FloatArray": np.float64, "CountArray": np.int64 if wide else np.int32,
    }  # fmt: skip
    return {
        field.name: (tuple(sizes[axis] for axis in field.name.rsplit("_", 1)[1]), dtypes[str(field.type)]) for field in fields(CountArrays)
    }
