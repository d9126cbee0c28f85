"""`moectl convert`: options in, library call, summary out. The work is `moectl.conversion.run`."""

from __future__ import annotations

from moectl.cli.console import console
from moectl.cli.options import (
    ConvertDtypeOption,
    ConvertedArgument,
    CopyThreadsOption,
    DebugOption,
    DryRunOption,
    FormatOption,
    LayoutOption,
    ModelArgument,
    OverwriteModelOption,
    ShardSizeOption,
    VerboseOption,
)

EXAMPLES = """Examples:

moectl convert ./DeepSeek-V3 ./DeepSeek-V3-bf16
moectl convert ./mixtral ./mixtral-fused --layout fused
moectl convert ./mixtral ./mixtral-f32 --dtype float32 --shard-size 10GB"""


def convert(
    model: ModelArgument,
    output: ConvertedArgument,
    dtype: ConvertDtypeOption = "auto",
    layout: LayoutOption = None,
    shard_size: ShardSizeOption = 5_000_000_000,
    threads: CopyThreadsOption = None,
    overwrite: OverwriteModelOption = False,
    output_format: FormatOption = "table",
    dry_run: DryRunOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """The same model in another dtype, layout or number of files.

    FP8 and MXFP4 are decoded; memory stays below 500 MB whatever the size. Interrupted, the same command goes on where it was.
    """
    from moectl.conversion import run
    from moectl.conversion.options import ConvertOptions

    options = ConvertOptions(
        model=model, output=output, dtype=dtype, layout=layout, shard_size=shard_size, threads=threads, overwrite=overwrite
    )
    if dry_run:
        plan = run.plan_convert(options)
        if output_format == "json":
            console.json(plan.to_json())
        else:
            console.rows(plan.rows, output_format=output_format)
        return
    with console.progress(verbose=verbose) as progress:
        done = run.run_convert(options, progress=progress)
    if output_format == "json":
        console.json(done.to_json())
    else:
        console.rows(done.rows, output_format=output_format)
