"""What `route-stats` can be asked, checked for what can be checked before anything is opened. Light: the command line imports it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moectl.data.sources import DEFAULT_DATA
from moectl.errors import UsageError

ORDERS = ("auto", "resident", "streamed")
MOST_ACTIVE_EXPERTS = 255  # the experts that two tokens share are summed in bytes


# What each program opens by: sglang reads JSON of no other name, KTransformers no other name than .pt.
EXPORT_SUFFIXES = {
    "eplb": (".safetensors", ".npy"),
    "sglang": (".json",),
    "vllm": (".safetensors",),
    "ktransformers": (".pt",),
}


@dataclass(frozen=True, slots=True)
class Export:
    """A file of expert loads for another program; see `routing.exports`."""

    format: str
    path: Path


def parse_exports(texts: Iterable[str]) -> tuple[Export, ...]:
    """`FORMAT=PATH` items. Raises UsageError for an unknown format, a name its program would not open, or one path for two files."""
    exports: list[Export] = []
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path or name not in EXPORT_SUFFIXES:
            raise UsageError(
                f"`--export {text}` is not FORMAT=PATH with a known format",
                hint=f"write it like `--export sglang=load.json`; formats: {', '.join(EXPORT_SUFFIXES)}",
            )
        suffixes = EXPORT_SUFFIXES[name]
        if Path(path).suffix not in suffixes:
            raise UsageError(f"`--export {text}`: the file of `{name}` must end in {' or '.join(f'`{end}`' for end in suffixes)}")
        if any(export.path.absolute() == Path(path).absolute() for export in exports):
            raise UsageError(f"`--export {text}`: `{path}` is to be written twice", hint="give each file a name of its own")
        exports.append(Export(name, Path(path)))
    return tuple(exports)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRunOptions:
    """What to do with a run that was saved: the folder of one, or a trace."""

    source: Path
    output: Path | None = None
    overwrite: bool = False
    exports: tuple[Export, ...] = ()

    def __post_init__(self) -> None:
        for path in (self.output, *(export.path for export in self.exports)):
            if path is not None and (_inside(self.source, path) or (_inside(path, self.source) and path.exists())):
                raise UsageError(
                    f"`{path}` belongs to `{self.source}`, which it would be made of", hint="choose another name for the output"
                )


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


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
    active_experts: int | None = None
    """Experts per token in every MoE layer; None is what the configuration says."""
    perplexity: bool = False
    """Also run what follows the last router, and the head, for the loss and what each token predicts."""
    exports: tuple[Export, ...] = ()

    def __post_init__(self) -> None:
        if not self.data:
            object.__setattr__(self, "data", DEFAULT_DATA)
        if self.trace and self.output is None:
            raise UsageError("`--trace` writes a file, and there is no `--output` to put it in", hint="add `--output DIR`")
        if self.order not in ORDERS:
            raise UsageError(f"`{self.order}` is not an order", hint=f"write one of {', '.join(ORDERS)}")
        counts = {
            "tokens": self.tokens, "seq-len": self.seq_len, "batch-tokens": self.batch_tokens, "active-experts": self.active_experts,
        }  # fmt: skip
        for flag, value in counts.items():
            if value is not None and value < 1:
                raise UsageError(f"`--{flag} {value}` is too small: it must be at least 1", hint=f"raise `--{flag}`")
        if self.active_experts is not None and self.active_experts > MOST_ACTIVE_EXPERTS:
            raise UsageError(
                f"`--active-experts {self.active_experts}` is too large: at most {MOST_ACTIVE_EXPERTS} experts of a token are counted",
                hint="lower `--active-experts`",
            )
