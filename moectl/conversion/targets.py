"""What each tensor of the new checkpoint is made of: a tensor of the old one, or parts of several.

    targets = plan_targets(index, moves(old_spec, new_spec, index.tensors), dtype="BF16", kept=())

Names, shapes and dtypes only; the bytes are in `parts.py`. Every value of the old checkpoint has one place in the new one: `moves` checks
it for what changes its place, and what does not is one tensor as before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from moectl.arch.spec import ModelSpec
from moectl.arch.tensors import TensorRef
from moectl.checkpoint.header import TensorInfo, tensor_bytes
from moectl.checkpoint.index import CheckpointIndex
from moectl.checkpoint.json_object import quote
from moectl.checkpoint.quantised import QuantisedInfo
from moectl.errors import ModelError

FLOATS = ("F64", "F32", "F16", "BF16")
_DECODED = "BF16"


@dataclass(frozen=True, slots=True)
class Piece:
    """A weight, where it lies in the old checkpoint and where in the new one."""

    source: TensorRef
    target: TensorRef


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the new checkpoint. `source`: the old tensor that it is; None if it is put together from `pieces`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str | None
    pieces: tuple[Piece, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        nbytes = tensor_bytes(self.dtype, self.shape)
        assert nbytes is not None
        return nbytes

    @property
    def sources(self) -> tuple[str, ...]:
        """The old tensors it is made of, each once."""
        return (self.source,) if self.source is not None else tuple(dict.fromkeys(piece.source.name for piece in self.pieces))


def moves(old: ModelSpec, new: ModelSpec, names: Collection[str]) -> dict[str, list[Piece]]:
    """The weights that lie elsewhere in `new` than in `old`, two specs of one model, by the name of their new tensor.

    `names`: the tensors that are there; multi-token-prediction layers may be missing. Raises ModelError if a tensor would be made, or used
    up, in part only.
    """
    found: dict[str, list[Piece]] = {}
    for source, target in zip(_refs(old), _refs(new), strict=True):
        if source.name in names and not _same_place(source, target):
            found.setdefault(target.name, []).append(Piece(source, target))
    pieces = [piece for some in found.values() for piece in some]
    for refs in ([piece.source for piece in pieces], [piece.target for piece in pieces]):
        _require_whole(refs)
    return found


def plan_targets(index: CheckpointIndex, moved: Mapping[str, list[Piece]], *, dtype: str | None, kept: Collection[str]) -> list[Target]:
    """All tensors of the new checkpoint, in the order in which the old one holds what they are made of.

    `dtype`: of all floating-point weights but those in `kept`; None leaves plain ones as they are and makes of quantised ones bfloat16.
    Raises ModelError where weights of several dtypes would share a tensor.
    """
    by_source: dict[str, dict[str, None]] = {}
    for name, pieces in moved.items():
        for piece in pieces:
            by_source.setdefault(piece.source.name, {})[name] = None
    targets: dict[str, Target] = {}
    for name, info in index.tensors.items():
        if name not in by_source:
            _add(targets, Target(name, _dtype(info, dtype, kept), tuple(info.shape), name))
            continue
        for new in by_source[name]:
            if new not in targets:
                pieces = moved[new]
                dtypes = {_dtype(index.tensors[piece.source.name], dtype, kept) for piece in pieces}
                if len(dtypes) > 1:
                    raise ModelError(
                        f"tensor {quote(new)} would be made of weights in {' and '.join(sorted(dtypes))}", hint="give `--dtype`"
                    )
                _add(targets, Target(new, dtypes.pop(), pieces[0].target.shape, None, tuple(pieces)))
    return list(targets.values())


def _add(targets: dict[str, Target], target: Target) -> None:
    if target.name in targets:
        raise ModelError(f"two tensors would have the name {quote(target.name)} in the new checkpoint")
    targets[target.name] = target


def _refs(spec: ModelSpec) -> Iterator[TensorRef]:
    yield from spec.refs()
    yield from spec.mtp_refs()


def _same_place(a: TensorRef, b: TensorRef) -> bool:
    return (a.name, a.shape, a.index, a.transposed, a.rows, a.row_step) == (b.name, b.shape, b.index, b.transposed, b.rows, b.row_step)


def _require_whole(refs: list[TensorRef]) -> None:
    """Weights that move, on one side: together they must be the tensors they lie in, each value once."""
    found: Counter[str] = Counter()
    shapes = {ref.name: ref.shape for ref in refs}
    if len({ref.part_name for ref in refs}) < len(refs):
        raise ModelError("the same weight would be moved twice")
    for ref in refs:
        found[ref.name] += ref.numel
    for name, shape in shapes.items():
        if found[name] != math.prod(shape):
            raise ModelError(
                f"only {found[name]:,} of the {math.prod(shape):,} values of tensor {quote(name)} have a place in this layout",
                hint="the multi-token-prediction layers may be incomplete: compare `moectl inspect --tensors`",
            )


def _dtype(info: TensorInfo | QuantisedInfo, dtype: str | None, kept: Collection[str]) -> str:
    if isinstance(info, QuantisedInfo):
        return dtype or _DECODED
    return dtype if dtype is not None and info.dtype in FLOATS and info.name not in kept else info.dtype
