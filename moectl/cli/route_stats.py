"""`moectl route-stats`: options in, library call, summary out. The work is `moectl.api.run_route_stats`."""

from __future__ import annotations

from moectl.cli.console import console
from moectl.cli.options import (
    BatchTokensOption,
    DataOption,
    DebugOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    FormatOption,
    MemoryOption,
    ModelArgument,
    OrderOption,
    OutputOption,
    OverwriteOption,
    SeqLenOption,
    SkipSpecialOption,
    TextFieldOption,
    ThreadsOption,
    TokensOption,
    TraceOption,
    VerboseOption,
)
from moectl.routing.options import RouteStatsOptions

EXAMPLES = """Examples:

moectl route-stats ./mixtral --data wikipedia.txt --tokens 100k
moectl route-stats ./mixtral --data code=src/ --data prose=books/ --output stats
moectl route-stats ./mixtral --data wikipedia.txt --format csv > layers.csv"""


def route_stats(
    model: ModelArgument,
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
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    trace: TraceOption = False,
    output_format: FormatOption = "table",
    dry_run: DryRunOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """Are the experts balanced, and what does each one specialise in?

    Runs the model over your text and counts the experts it really executed.
    """
    options = RouteStatsOptions(
        model=model,
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
    )
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
    match output_format:
        case "json":
            console.json(stats.summary)
        case "csv":
            console.csv(stats.layers)
        case _:
            from moectl.report.terminal import render

            console.out(render(stats, width=console.width))
    if output is not None:
        console.notice(f"wrote `{output}`")
