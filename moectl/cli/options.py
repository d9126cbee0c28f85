"""The option types all commands share: one name, one meaning, one help text each.

Values with units are parsed here by `moectl.units`, so a bad one names the flag and says how to write it.

    def command(model: ModelArgument, tokens: TokensOption = None) -> None: ...
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from moectl.cli.console import console
from moectl.errors import UsageError
from moectl.units import parse_bytes, parse_count

INPUT, COMPUTE, OUTPUT = "Input", "Compute", "Output"


def _units(flag: str, parse: Callable[[str], int]) -> Callable[[str | int], int]:
    def parser(value: str | int) -> int:
        # Typer sends defaults through the parser as well.
        if isinstance(value, int):
            return value
        try:
            return parse(value)
        except UsageError as error:
            raise UsageError(f"`{flag}`: {error.message}", hint=error.hint) from error

    return parser


def _count(flag: str) -> Callable[[str | int], int]:
    return _units(flag, parse_count)


def _bytes(flag: str) -> Callable[[str | int], int]:
    return _units(flag, parse_bytes)


def _device(text: str) -> str:
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", text, re.ASCII) is None:
        raise UsageError(f"`--device`: `{text}` is not a device", hint="write `auto`, `cpu`, `cuda` or `cuda:1`")
    return text


def _debug(value: bool) -> bool:
    # Set at parse time, so the handler knows of it whatever fails later; `--debug` counts before and after the command.
    console.debug = console.debug or value
    return value


MODEL_HELP = "A folder in Hugging Face layout, a .safetensors file beside its config.json, a Hub id, or demo: the built-in model."
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
InspectedModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help=f"{MODEL_HELP.removesuffix('.')}; or a config.json, or a folder with nothing else."),
]

OptionalModelArgument = Annotated[str | None, typer.Argument(metavar="[MODEL]", help=f"{MODEL_HELP} Not with --from.", show_default=False)]
FromOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="DIR",
        help="Instead of MODEL: show a saved run again (the DIR of its --output), or count its trace.safetensors again.",
        rich_help_panel=INPUT,
    ),
]

DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="NAME=SOURCE",
        help="Text to route; repeat it to compare domains. SOURCE is a file, folder or glob of text, .jsonl, .json or "
        ".parquet rows, or .npy token ids; hf://datasets/org/name/file on the Hub; or demo: five built-in domains. NAME= may be left out. "
        "Default: demo.",
        rich_help_panel=INPUT,
        show_default=False,
    ),
]
TokensOption = Annotated[
    int | None,
    typer.Option(
        "--tokens",
        metavar="N",
        parser=_count("--tokens"),
        help="At most N tokens of each domain, such as 100k. Default: all.",
        rich_help_panel=INPUT,
    ),
]
SeqLenOption = Annotated[
    int,
    typer.Option("--seq-len", metavar="N", parser=_count("--seq-len"), help="Cut sequences at N tokens.", rich_help_panel=INPUT),
]
TextFieldOption = Annotated[
    str, typer.Option("--text-field", metavar="KEY", help="Where rows keep their text, or the messages of a chat.", rich_help_panel=INPUT)
]
SkipSpecialOption = Annotated[
    bool, typer.Option("--skip-special", metavar="", help="Leave special tokens such as BOS out of the counts.", rich_help_panel=INPUT)
]

DtypeOption = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="auto, float32 or bfloat16. auto is the checkpoint's own, if this machine computes in it.",
        rich_help_panel=COMPUTE,
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", parser=_device, help="auto, cpu, cuda or cuda:N.", rich_help_panel=COMPUTE)
]
MemoryOption = Annotated[
    int | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        parser=_bytes("--memory"),
        help="Keep the whole process below SIZE, such as 16GB. Default: what is free.",
        rich_help_panel=COMPUTE,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", metavar="N", parser=_count("--threads"), help="CPU threads. Default: torch's choice.", rich_help_panel=COMPUTE
    ),
]
BatchTokensOption = Annotated[
    int,
    typer.Option(
        "--batch-tokens",
        metavar="N",
        parser=_count("--batch-tokens"),
        help="Tokens computed at once. Another N may change the last bits of a result.",
        rich_help_panel=COMPUTE,
    ),
]
OrderOption = Annotated[
    Literal["auto", "resident", "streamed"],
    typer.Option(
        "--order",
        metavar="ORDER",
        help="auto, resident (all weights in memory) or streamed (each layer visits memory once). The results are the same.",
        rich_help_panel=COMPUTE,
    ),
]

ActiveExpertsOption = Annotated[
    int | None,
    typer.Option(
        "--active-experts",
        metavar="K",
        parser=_count("--active-experts"),
        help="Run every MoE layer with K experts per token. Default: what the model's configuration says.",
        rich_help_panel=COMPUTE,
    ),
]
PerplexityOption = Annotated[
    bool,
    typer.Option(
        "--perplexity",
        metavar="",
        help="Also run the head: loss and perplexity of the text, and experts by predicted token.",
        rich_help_panel=COMPUTE,
    ),
]

ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="N",
        parser=_count("--context"),
        help="FLOPs, cache and memory of a sequence of N tokens, such as 128k. Default: 4096, or less if the model is made for less.",
        rich_help_panel=COMPUTE,
    ),
]
CacheBitsOption = Annotated[
    int,
    typer.Option(
        "--cache-bits", metavar="N", parser=_count("--cache-bits"), help="Bits per value in the KV cache.", rich_help_panel=COMPUTE
    ),
]
RanksOption = Annotated[
    int | None,
    typer.Option(
        "--ranks",
        metavar="N",
        parser=_count("--ranks"),
        help="Also what each of N ranks holds under expert parallelism.",
        rich_help_panel=COMPUTE,
    ),
]
WhatIfOption = Annotated[
    str | None,
    typer.Option(
        "--what-if",
        metavar="SHAPE",
        help="Also the model as another MoE, before and after. SHAPE is EXPERTS,TOP_K[,granularity=G][,shared=S]: experts of FFN "
        "width / G, S of them shared.",
        rich_help_panel=COMPUTE,
    ),
]
TensorsOption = Annotated[
    bool,
    typer.Option("--tensors", metavar="", help="List every tensor: name, dtype, shape, bytes, file.", rich_help_panel=OUTPUT),
]

ConvertedArgument = Annotated[Path, typer.Argument(metavar="OUT", help="The new folder.", show_default=False)]
ConvertDtypeOption = Annotated[
    Literal["auto", "keep", "float32", "bfloat16", "float16"],
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="auto: quantised weights become bfloat16, others stay. keep: quantised ones stay too. float32, bfloat16 or float16: all "
        "weights, but those the family keeps in float32.",
        rich_help_panel=OUTPUT,
    ),
]
LayoutOption = Annotated[
    Literal["hub", "fused"] | None,
    typer.Option(
        "--layout",
        metavar="LAYOUT",
        help="hub: names and experts as published. fused: all experts of a layer in one tensor, as newer transformers has them in memory. "
        "Default: as they are.",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
ShardSizeOption = Annotated[
    int,
    typer.Option(
        "--shard-size",
        metavar="SIZE",
        parser=_bytes("--shard-size"),
        help="Bytes of tensors in one file, such as 5GB.",
        rich_help_panel=OUTPUT,
    ),
]
CopyThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        parser=_count("--threads"),
        help="Threads that read, compute and write. Default: one for each CPU, two at most.",
        rich_help_panel=COMPUTE,
    ),
]
OverwriteModelOption = Annotated[
    bool, typer.Option("--overwrite", metavar="", help="Replace OUT if moectl wrote it.", rich_help_panel=OUTPUT)
]

OutputOption = Annotated[
    Path | None,
    typer.Option("--output", metavar="DIR", help="Write the tables and the summary into this new folder.", rich_help_panel=OUTPUT),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", metavar="", help="Replace DIR if moectl wrote it, and the files of --export.", rich_help_panel=OUTPUT)
]
TraceOption = Annotated[
    bool, typer.Option("--trace", metavar="", help="Also write the experts and weights of every token to DIR.", rich_help_panel=OUTPUT)
]
ExportOption = Annotated[
    list[str] | None,
    typer.Option(
        "--export",
        metavar="FORMAT=PATH",
        help="Also write the experts' loads for another program; repeatable. FORMAT is eplb (.safetensors, .npy), sglang (.json), "
        "vllm (.safetensors) or ktransformers (.pt).",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
FormatOption = Annotated[
    Literal["table", "json", "csv"],
    typer.Option("--format", metavar="FORMAT", help="table, json or csv: how to print the result on stdout.", rich_help_panel=OUTPUT),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", metavar="", help="Print the plan (bytes, tokens, memory) and stop.", rich_help_panel=OUTPUT)
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", metavar="", help="Show progress as plain lines where there is no terminal.", rich_help_panel=OUTPUT),
]

DebugOption = Annotated[
    bool, typer.Option("--debug", metavar="", callback=_debug, is_eager=True, help="Show a traceback when something fails.")
]
VersionOption = Annotated[bool, typer.Option("--version", metavar="", help="Print the version.")]
