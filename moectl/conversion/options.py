"""What the user asked `convert` for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from moectl.arch.fused import LAYOUTS
from moectl.checkpoint.writer import DEFAULT_SHARD_SIZE
from moectl.errors import UsageError

# More were not faster: two decode as fast as a file takes bytes, which one thread at a time may write.
_MOST_THREADS = 2
DTYPES = ("auto", "keep", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """`dtype`: "auto" decodes quantised weights to bfloat16 and leaves the rest; "keep" leaves all; else what all weights become.

    `layout`: None leaves every tensor where it lies. `shard_size` in bytes. `threads`: None is one for each CPU, two at most.
    """

    model: str
    output: Path
    dtype: str = "auto"
    layout: str | None = None
    shard_size: int = DEFAULT_SHARD_SIZE
    threads: int | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Raise UsageError for values that no conversion takes."""
        if self.dtype not in DTYPES:
            raise UsageError(f"`--dtype`: `{self.dtype}` is nothing to convert to", hint=f"write one of {', '.join(DTYPES)}")
        if self.layout not in (None, *LAYOUTS):
            raise UsageError(f"`--layout`: `{self.layout}` is not a layout", hint=f"write one of {', '.join(LAYOUTS)}")
        if self.shard_size < 1 or (self.threads is not None and self.threads < 1):
            raise UsageError("`--shard-size` and `--threads` must be above zero")

    @property
    def n_threads(self) -> int:
        """Threads that read, compute and write."""
        return self.threads or min(_MOST_THREADS, os.cpu_count() or 1)
