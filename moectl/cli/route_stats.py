"""`moectl route-stats`: options in, library call, summary out. The work is `moectl.api.run_route_stats`."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from moectl.cli.console import console
from moectl.cli.options import (
    ActiveExpertsOption,
    BatchTokensOption,
    DataOption,
    DebugOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    ExportOption,
    FormatOption,
    FromOption,
    MemoryOption,
    OptionalModelArgument,
    OrderOption,
    OutputOption,
    OverwriteOption,
    PerplexityOption,
    SeqLenOption,
    SkipSpecialOption,
    TextFieldOption,
    ThreadsOption,
    TokensOption,
    TraceOption,
    VerboseOption,
)
from moectl.errors import UsageError
from moectl.routing.options import RouteStatsOptions, SavedRunOptions, parse_exports

if TYPE_CHECKING:
    from moectl.routing.result import RouteStats

EXAMPLES = """Examples:

moectl route-stats ./mixtral --data wikipedia.txt --tokens 100k
moectl route-stats ./mixtral --data code=src/ --data prose=books/ --output stats
moectl route-stats ./mixtral --data wikipedia.txt --format csv > layers.csv

moectl route-stats --from stats --export sglang=load.json"""


def route_stats(
    model: OptionalModelArgument = None,
    source: FromOption = None,
    data: DataOption = None,
    tokens: TokensOption = None,
    seq_len: SeqLenOption = 512,
    text_field: TextFieldOption = "text",
    skip_special: SkipSpecialOption = False,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    memory: MemoryOption = None,
    threads: ThreadsOption = None,
    batch_tokens: BatchTokensOption = 4096,
    order: OrderOption = "auto",
    active_experts: ActiveExpertsOption = None,
    perplexity: PerplexityOption = False,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    trace: TraceOption = False,
    export: ExportOption = None,
    output_format: FormatOption = "table",
    dry_run: DryRunOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Are the experts balanced, and what does each one specialise in?

    Runs the model over your text and counts the experts it really executed.
    """
    options = RouteStatsOptions(
        model=model or "",
        data=tuple(data or ()),
        tokens=tokens,
        seq_len=seq_len,
        batch_tokens=batch_tokens,
        dtype=dtype,
        device=device,
        memory=memory,
        threads=threads,
        order=order,
        output=output,
        overwrite=overwrite,
        trace=trace,
        skip_special=skip_special,
        text_field=text_field,
        active_experts=active_experts,
        perplexity=perplexity,
        exports=parse_exports(export or ()),
    )
    if source is not None:
        _refuse_with_from(options, dry_run=dry_run)
        from moectl.api import run_saved_route_stats

        saved = SavedRunOptions(source=source, output=output, overwrite=overwrite, exports=options.exports)
        _show(run_saved_route_stats(saved), saved, output_format)
        return
    if model is None:
        raise UsageError("missing argument `MODEL`", hint="name a model, or a saved run with `--from DIR`")
    if dry_run:
        from moectl.api import plan_route_stats

        plan = plan_route_stats(options)
        if output_format == "json":
            console.json(plan.to_json())
        else:
            console.rows(plan.rows, output_format=output_format)
        return

    from moectl.api import run_route_stats

    with console.progress(verbose=verbose) as progress:
        stats = run_route_stats(options, progress=progress)
    _show(stats, options, output_format)


def _show(stats: RouteStats, options: RouteStatsOptions | SavedRunOptions, output_format: str) -> None:
    match output_format:
        case "json":
            console.json(stats.summary)
        case "csv":
            console.csv(stats.layers)
        case _:
            from moectl.report.terminal.summary import render

            console.out(render(stats, width=console.width))
    for path in (options.output, *(export.path for export in options.exports)):
        if path is not None:
            console.notice(f"wrote `{path}`")


def _refuse_with_from(options: RouteStatsOptions, *, dry_run: bool) -> None:
    """A saved run is what it is: nothing of how to run a model goes with it. Raises UsageError."""
    if options.model:
        raise UsageError(f"MODEL `{options.model}` and `--from` do not go together", hint="leave out one of them")
    usual = RouteStatsOptions(model="")
    given = ["dry_run"] if dry_run else []
    given += [field.name for field in fields(options) if getattr(options, field.name) != getattr(usual, field.name)]
    wrong = [name for name in given if name not in ("output", "overwrite", "exports")]
    if wrong:
        raise UsageError(
            f"`--{wrong[0].replace('_', '-')}` and `--from` do not go together: the run is over",
            hint="`--output`, `--overwrite`, `--export` and `--format` do",
        )
