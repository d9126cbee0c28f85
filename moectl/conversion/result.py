"""What a conversion will do, and what it did, as data and as rows for people. Sizes in bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from moectl.checkpoint.quantised import QuantisedInfo
from moectl.checkpoint.writer import shard_sizes
from moectl.conversion.options import ConvertOptions
from moectl.conversion.parts import BUFFER_BYTES, assembled_bytes, needs_reader
from moectl.conversion.source import Source
from moectl.conversion.targets import Target
from moectl.units import format_bytes, format_seconds

# What `import torch` and its first kernels take; measured with 2.13 for CPUs.
_TORCH_BYTES = 260_000_000
_MARGIN_BYTES = 40_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionPlan:
    """`actions` counts new tensors by what is done for them: `copied`, `cast`, `decoded`, `moved`."""

    model: str
    output: str
    dtype: str
    layout: str | None
    actions: dict[str, int]
    tensors_in: int
    tensors_out: int
    read_bytes: int
    write_bytes: int
    bytes_by_dtype: dict[str, int]
    shards: int
    peak_bytes: int
    """Planned peak RSS of the process."""
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """Label and text, for people."""
        actions = ", ".join(f"{count:,} {name}" for name, count in self.actions.items())
        dtypes = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.bytes_by_dtype.items())
        return (
            ("model", self.model),
            ("output", self.output),
            (
                "tensors",
                f"{self.tensors_in:,} into {self.tensors_out:,}: {actions}",
            ),
            ("to read", format_bytes(self.read_bytes)),
            ("to write", f"{format_bytes(self.write_bytes)} in {self.shards:,} {'file' if self.shards == 1 else 'files'}: {dtypes}"),
            ("peak memory", format_bytes(self.peak_bytes)),
            *(("note", note) for note in self.notes),
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was written. `resumed_shards` were there from an earlier call."""

    plan: ConversionPlan
    seconds: float
    written_bytes: int
    resumed_shards: int

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """Label and text, for people."""
        rate = f" at {format_bytes(self.written_bytes / self.seconds)}/s" if self.seconds > 0 else ""
        resumed = f", {self.resumed_shards} files of an earlier attempt kept" if self.resumed_shards else ""
        shown = [row for row in self.plan.rows if row[0] in ("model", "output", "tensors")]
        size = next(text for label, text in self.plan.rows if label == "to write")
        return (*shown, ("written", size), ("time", f"{format_seconds(self.seconds)}{rate}{resumed}"))

    def to_json(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            **self.plan.to_json(),
            "seconds": round(self.seconds, 3),
            "written_bytes": self.written_bytes,
            "resumed_shards": self.resumed_shards,
        }


def plan_conversion(source: Source, options: ConvertOptions) -> ConversionPlan:
    """What the conversion of `source` comes to."""
    actions: Counter[str] = Counter()
    by_dtype: Counter[str] = Counter()
    for target in source.targets:
        actions[_action(target, source)] += 1
        by_dtype[target.dtype] += target.nbytes
    computing = any(needs_reader(target, source.index) for target in source.targets)
    return ConversionPlan(
        model=source.location.name,
        output=str(options.output),
        dtype=options.dtype,
        layout=options.layout,
        actions=dict(actions.most_common()),
        tensors_in=len(source.index.tensors),
        tensors_out=len(source.targets),
        read_bytes=sum(info.nbytes for info in source.index.tensors.values()),
        write_bytes=sum(by_dtype.values()),
        bytes_by_dtype=dict(by_dtype.most_common()),
        shards=len(shard_sizes([target.nbytes for target in source.targets], options.shard_size)),
        peak_bytes=_peak_bytes(source, options, computing=computing),
        notes=source.notes,
    )


def _action(target: Target, source: Source) -> str:
    infos = [source.index.tensors[name] for name in target.sources]
    if any(isinstance(info, QuantisedInfo) for info in infos):
        return "decoded"
    if any(info.dtype != target.dtype for info in infos):
        return "cast"
    return "copied" if target.source is not None else "moved"


def _peak_bytes(source: Source, options: ConvertOptions, *, computing: bool) -> int:
    """This process as it is, with every header read; torch, if values are computed; and what each thread has in hand."""
    turned = max((assembled_bytes(target) for target in source.targets), default=0)
    in_hand = options.n_threads * (BUFFER_BYTES + turned) + _TORCH_BYTES if computing else options.n_threads * BUFFER_BYTES
    return psutil.Process().memory_info().rss + in_hand + _MARGIN_BYTES
