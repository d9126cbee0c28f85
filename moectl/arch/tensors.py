"""Where the weights of a model lie: tensors on disk, parts of them, and the patterns that name every routed expert.

No torch here, no bytes. Sizes: H hidden, I width of an expert, E routed experts. Weights are `[out, in]`.
"""

from __future__ import annotations

from dataclasses import dataclass

EVERY_EXPERT = -1
"""As `TensorRef.index`: one tensor holds all experts along dim 0; `ExpertTensors.refs` fills in the expert's id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRef:
    """Where a weight lies: a tensor on disk, or a part of one.

    `shape` is that of the whole tensor on disk. `index` picks along dim 0 (stacked experts); `transposed` swaps the two dims of what is
    left (stored `[in, out]`); then `rows` takes rows of it, each `row_step`-th (fused projections). `keep_float32`: not cast to the
    model's dtype.
    """

    name: str
    shape: tuple[int, ...]
    index: int | None = None
    transposed: bool = False
    rows: tuple[int, int] | None = None
    row_step: int = 1
    keep_float32: bool = False

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of the weight itself."""
        shape = self.shape if self.index is None else self.shape[1:]
        if self.transposed:
            shape = shape[::-1]
        return shape if self.rows is None else (len(range(*self.rows, self.row_step)), *shape[1:])

    @property
    def part_name(self) -> str:
        """Name of the weight itself, which no other weight of a model has: the tensor's and, of a part, which one."""
        index = "" if self.index is None else f"[{self.index}]"
        return self.name + index + ("" if self.rows is None else f"[{self.rows[0]}:{self.rows[1]}:{self.row_step}]")

    @property
    def numel(self) -> int:
        """Values in the weight itself."""
        count = 1
        for size in self.part_shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTensors:
    """The matrices of every routed expert, and their biases if it has them, as patterns: `{e}` in a name, or EVERY_EXPERT as index."""

    gate: TensorRef
    up: TensorRef
    down: TensorRef
    gate_bias: TensorRef | None = None
    up_bias: TensorRef | None = None
    down_bias: TensorRef | None = None

    def refs(self, expert: int) -> tuple[TensorRef, ...]:
        """gate, up, down of one expert, then their biases in the same order: three or six."""
        refs = (self.gate, self.up, self.down, self.gate_bias, self.up_bias, self.down_bias)
        return tuple(_of_expert(ref, expert) for ref in refs if ref is not None)


def _of_expert(ref: TensorRef, expert: int) -> TensorRef:
    # Written out: `dataclasses.replace` takes three times as long, and large checkpoints have 50,000 of these.
    return TensorRef(
        name=ref.name.replace("{e}", str(expert)),
        shape=ref.shape,
        index=expert if ref.index == EVERY_EXPERT else ref.index,
        transposed=ref.transposed,
        rows=ref.rows,
        row_step=ref.row_step,
        keep_float32=ref.keep_float32,
    )
