"""What `route-stats` can be asked, checked for what can be checked before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moectl.data.sources import DEFAULT_DATA
from moectl.errors import UsageError

ORDERS = ("auto", "resident", "streamed")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStatsOptions:
    """The options of one run. Raises UsageError for values that no run could have."""

    model: str
    data: tuple[str, ...] = DEFAULT_DATA
    tokens: int | None = None
    """Bound on the tokens of each domain; None uses all of it."""
    seq_len: int = 512
    batch_tokens: int = 4096
    dtype: str = "auto"
    device: str = "auto"
    memory: int | None = None
    """Peak RSS allowed, in bytes; None allows what is available now."""
    threads: int | None = None
    order: str = "auto"
    output: Path | None = None
    overwrite: bool = False
    trace: bool = False
    skip_special: bool = False
    text_field: str = "text"

    def __post_init__(self) -> None:
        if not self.data:
            object.__setattr__(self, "data", DEFAULT_DATA)
        if self.trace and self.output is None:
            raise UsageError("`--trace` writes a file, and there is no `--output` to put it in", hint="add `--output DIR`")
        if self.order not in ORDERS:
            raise UsageError(f"`{self.order}` is not an order", hint=f"write one of {', '.join(ORDERS)}")
        for flag, value in (("tokens", self.tokens), ("seq-len", self.seq_len), ("batch-tokens", self.batch_tokens)):
            if value is not None and value < 1:
                raise UsageError(f"`--{flag} {value}` is too small: it must be at least 1", hint=f"raise `--{flag}`")
