"""What a training run is told: everything that decides its numbers, in one frozen object.

options = TrainOptions(steps=1000, lr=3e-4, warmup_steps=50, balance=BalanceOptions(bias_gamma=1e-3))
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from moectl.errors import UsageError
from moectl.training.balance import BalanceOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Options of one run. Tokens are counted per optimiser step: `batch_tokens * accumulation`.

    `schedule`: "cosine" falls from `lr` to `min_lr` over all steps after the warm-up; "wsd" (warm-up, stable, decay) holds `lr` and falls
    linearly over the last `decay_fraction` of the steps, or over all after the warm-up if those are fewer. `mtp_weight` becomes
    `mtp_weight_late` after `mtp_late_fraction` of the steps, as DeepSeek-V3 does (arXiv 2412.19437, section 4.2). `recompute` trades time
    for memory: layers run again in the backward pass.
    Raises UsageError for values that make no sense.
    """

    steps: int
    seq_len: int = 512
    batch_tokens: int = 4096
    """Tokens of one micro-batch: whole sequences of `seq_len`."""
    accumulation: int = 1
    """Micro-batches of one optimiser step."""
    lr: float = 3e-4
    min_lr: float = 0.0
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup_steps: int = 0
    decay_fraction: float = 0.2
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0
    """Largest global norm of the gradient."""
    mtp_weight: float = 0.3
    mtp_weight_late: float = 0.1
    mtp_late_fraction: float = 2 / 3
    balance: BalanceOptions = field(default_factory=BalanceOptions)
    recompute: bool = False
    seed: int = 0
    save_every: int = 500
    keep_last: int = 2
    """Checkpoints kept; older ones are deleted."""
    eval_every: int = 500
    log_every: int = 10

    def __post_init__(self) -> None:
        at_least_one = ("steps", "batch_tokens", "accumulation", "save_every", "keep_last", "eval_every", "log_every")
        for name in at_least_one:
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.seq_len >= 2, "seq_len", self.seq_len, "at least 2, or there is no next token")
        _require(self.batch_tokens >= self.seq_len, "batch_tokens", self.batch_tokens, f"at least one sequence of {self.seq_len}")
        _require(0 < self.lr < math.inf, "lr", self.lr, "above 0 and finite")
        _require(0 <= self.min_lr <= self.lr, "min_lr", self.min_lr, f"between 0 and lr = {self.lr:g}")
        _require(0 <= self.warmup_steps <= self.steps, "warmup_steps", self.warmup_steps, f"between 0 and steps = {self.steps}")
        _require(0 < self.decay_fraction <= 1, "decay_fraction", self.decay_fraction, "above 0 and at most 1")
        _require(0 <= self.mtp_late_fraction <= 1, "mtp_late_fraction", self.mtp_late_fraction, "between 0 and 1")
        _require(0 <= self.beta1 < 1, "beta1", self.beta1, "at least 0 and below 1")
        _require(0 <= self.beta2 < 1, "beta2", self.beta2, "at least 0 and below 1")
        for name in ("weight_decay", "eps", "mtp_weight", "mtp_weight_late"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "at least 0 and finite")
        _require(self.clip > 0, "clip", self.clip, "above 0 (infinity for no clipping)")
        _require(self.seed >= 0, "seed", self.seed, "at least 0")
        _require(self.schedule in ("cosine", "wsd"), "schedule", self.schedule, "`cosine` or `wsd`")

    @property
    def sequences_per_batch(self) -> int:
        """Sequences of one micro-batch."""
        return self.batch_tokens // self.seq_len

    def to_json(self) -> dict[str, Any]:
        """As JSON; two runs with equal options train alike."""
        return dataclasses.asdict(self)


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise UsageError(f"`{name}` is {value}; it must be {wanted}")
