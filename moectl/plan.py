"""What a run will cost, said before it starts: bytes, memory, arithmetic, time.

Pure arithmetic over plain numbers; `moectl.arch.counts` supplies those of a model. Also the Progress protocol, through which the library
reports work without printing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from moectl.errors import ResourceError
from moectl.units import format_bytes, format_count, format_seconds

# Set aside for what a plan cannot see: threads' stacks, library buffers, allocator slack, the data-frame libraries.
MARGIN_BYTES = 400_000_000


class Progress(Protocol):
    """Hears of the work as it happens. The CLI draws it; tests and notebooks can pass their own."""

    def stage(self, name: str, total: float, unit: str) -> None:
        """A new piece of work of `total` units begins."""

    def advance(self, amount: float) -> None:
        """`amount` more units of the current stage are done."""

    def notice(self, text: str) -> None:
        """Something the user should know: a choice and its reason, or a warning."""


class Silence:
    """A Progress that says nothing."""

    def stage(self, name: str, total: float, unit: str) -> None: ...
    def advance(self, amount: float) -> None: ...
    def notice(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSizes:
    """Sizes of a model and a micro-batch that decide memory. All in values or tokens, not bytes."""

    weights: int
    largest_layer: int
    """Weights of the largest layer without routed experts."""
    largest_expert: int
    largest_tensor: int
    hidden: int
    attention_width: int
    """Queries, keys and values of one token in one layer."""
    query_width: int
    """Its queries alone."""
    ffn_values: int
    """What the widest feed-forward block holds of one token at once, routed, shared or dense."""
    n_experts: int
    top_k: int
    tokens: int
    batch_tokens: int


def activation_bytes(sizes: ForwardSizes, itemsize: int) -> int:
    """Working memory of one micro-batch inside one layer, at the worst: all its tokens in one expert."""
    residual = 4 * sizes.hidden * itemsize + 4 * sizes.hidden
    # Queries are normed and rotated in float32, in up to three copies; later there are as many of the output, in one piece and in parts.
    attention = max(3 * sizes.attention_width * itemsize, sizes.attention_width * itemsize + 12 * sizes.query_width)
    ffn = sizes.ffn_values * itemsize + sizes.hidden * (2 * itemsize + 4)
    # Logits, scores, masks and counting matrices in float32; ids, order and rows in int64.
    router = 6 * 4 * sizes.n_experts + 8 * 8 * sizes.top_k
    return sizes.batch_tokens * (residual + max(attention, ffn) + router)


def resident_bytes(sizes: ForwardSizes, *, itemsize: int, stored_itemsize: int) -> int:
    """Memory of a token-major run beside the process itself: all weights, one micro-batch, one tensor being read."""
    return sizes.weights * itemsize + sizes.largest_tensor * stored_itemsize + activation_bytes(sizes, itemsize)


def streamed_bytes(sizes: ForwardSizes, *, itemsize: int, stored_itemsize: int) -> int:
    """Memory of a layer-major run beside the process itself: one layer, one expert, and per token its residual stream,
    its normed copy, its float32 sum and its routing."""
    weights = (sizes.largest_layer + sizes.largest_expert) * (itemsize + stored_itemsize)
    per_token = sizes.hidden * (2 * itemsize + 4) + sizes.top_k * 16
    return weights + sizes.tokens * per_token + activation_bytes(sizes, itemsize)


def head_bytes(sizes: ForwardSizes, *, vocab_rows: int, chunk_tokens: int, itemsize: int) -> int:
    """Working memory of the head on one micro-batch: normed states, the running sums of each token, logits of one chunk and block."""
    return sizes.batch_tokens * (sizes.hidden * (itemsize + 4) + 32) + chunk_tokens * vocab_rows * (itemsize + 8) + 4 * sizes.tokens


def streamed_head_bytes(sizes: ForwardSizes, *, vocab_rows: int, itemsize: int, stored_itemsize: int) -> int:
    """What the head takes beside that where it is read block by block for all tokens: one block, and the sums of every token."""
    return vocab_rows * sizes.hidden * (itemsize + stored_itemsize) + 32 * sizes.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `route-stats` is about to do."""

    model: str
    tokens: int
    sequences: int
    dtype: str
    dtype_reason: str
    device: str
    order: str
    order_reason: str
    read_bytes: int
    peak_bytes: int
    """Planned peak RSS of the process."""
    budget_bytes: int
    flops: float
    flops_per_s: float
    """Measured on this machine just now, one large GEMM in the plan's dtype."""
    output_bytes: int
    top_k: int
    top_k_config: int
    perplexity: bool
    predicted_ids: bool
    """Whether experts are counted by the ids the model predicts: asked for, and there is memory to keep every token's experts so long."""

    @property
    def arithmetic_seconds(self) -> float:
        """The arithmetic alone at the measured GEMM rate. A run takes longer, unless the machine was busy while it was measured."""
        return self.flops / self.flops_per_s

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """Label and text, for people."""
        return (
            ("model", self.model),
            ("data", f"{self.tokens:,} tokens in {self.sequences:,} {'sequence' if self.sequences == 1 else 'sequences'}"),
            *self._special_rows,
            ("dtype", f"{self.dtype} ({self.dtype_reason})"),
            ("device", self.device),
            ("order", f"{self.order} ({self.order_reason})"),
            ("to read", format_bytes(self.read_bytes)),
            ("peak memory", f"{format_bytes(self.peak_bytes)} of {format_bytes(self.budget_bytes)} allowed"),
            ("arithmetic", f"{format_count(self.flops)} FLOPs"),
            (
                "time",
                f"{format_seconds(self.arithmetic_seconds)} for the arithmetic alone, at {self.flops_per_s / 1e9:.0f} GFLOP/s measured now",
            ),
            ("output", f"{format_bytes(self.output_bytes)}" if self.output_bytes else "terminal only"),
        )

    @property
    def _special_rows(self) -> tuple[tuple[str, str], ...]:
        rows = []
        if self.top_k != self.top_k_config:
            rows.append(("experts", f"{self.top_k} a token (the configuration says {self.top_k_config})"))
        if self.perplexity:
            counted = "experts counted by predicted id" if self.predicted_ids else "no memory to count experts by predicted id"
            rows.append(("perplexity", f"all layers and the head; {counted}"))
        return tuple(rows)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON, sizes in bytes."""
        return {**asdict(self), "arithmetic_seconds": self.arithmetic_seconds}


def choose_order(order: str, *, resident: int, streamed: int, budget: int) -> tuple[str, str]:
    """Resident or streamed, and why; both sizes include the process itself. Raises ResourceError if it cannot fit."""
    needed = {"resident": resident, "streamed": streamed}
    if order == "auto":
        if resident <= budget:
            return "resident", "all weights fit in memory"
        order, reason = "streamed", f"all weights at once would take {format_bytes(resident)}"
    else:
        reason = "as asked"
    if order == "resident" and streamed <= budget:
        hint = "let `--order auto` stream the weights, or raise `--memory`"
    else:
        hint = "lower `--tokens` or `--batch-tokens`, or raise `--memory`"
    require_memory(needed[order], budget, hint=hint)
    return order, reason


def require_memory(needed: int, budget: int, *, hint: str) -> None:
    """Raises ResourceError if `needed` bytes are more than `budget`."""
    if needed > budget:
        raise ResourceError(f"this run would take {format_bytes(needed)} of memory, but {format_bytes(budget)} are allowed", hint=hint)


def check_disk(needed: int, available: int, where: str) -> None:
    """Raises ResourceError if `needed` bytes do not fit."""
    if needed > available:
        raise ResourceError(
            f"`{where}` needs {format_bytes(needed)}, but its disk has {format_bytes(available)} free",
            hint="free some space, choose another folder, or leave out `--trace`",
        )
