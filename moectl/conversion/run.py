"""A checkpoint into another dtype, layout or shards, tensor by tensor: memory does not follow its size.

    convert("DeepSeek-V3", "DeepSeek-V3-bf16")

The new folder appears whole or not at all; a shard that is complete survives an interruption, and the same call goes on after it. At the
end the headers written are read again and held against the plan.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import moectl
from moectl.checkpoint.writer import DEFAULT_SHARD_SIZE, CheckpointWriter, PlannedTensor
from moectl.conversion.manifest import audit, write_beside
from moectl.conversion.options import ConvertOptions
from moectl.conversion.parts import needs_reader, parts_of
from moectl.conversion.pool import Workers, one_thread_each
from moectl.conversion.result import Conversion, ConversionPlan, plan_conversion
from moectl.conversion.source import Source, open_source
from moectl.errors import UsageError, from_os_error
from moectl.plan import Progress, Silence
from moectl.staging import ResumableStage, check_output, resumable_directory


def convert(
    model: str | Path,
    output: str | Path,
    *,
    dtype: str = "auto",
    layout: str | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write the same model in other bytes: cast, decoded from FP8 or MXFP4, with its experts apart or stacked, in other shards.

    `model`: a folder in Hub layout, a `.safetensors` file, a Hub id or `demo`. `dtype`: "auto" decodes quantised weights to bfloat16 and
    leaves the rest; "keep" leaves codes as well; "float32", "bfloat16", "float16" cast all weights but those the family keeps in float32.
    `layout`: "hub", as published, or "fused", as newer transformers has it in memory; None leaves it. `shard_size` in bytes.
    Raises UsageError, ModelError (also for a value that the new dtype cannot hold), ResourceError.
    """
    options = ConvertOptions(
        model=str(model), output=Path(output), dtype=dtype, layout=layout, shard_size=shard_size, threads=threads, overwrite=overwrite
    )
    return run_convert(options, progress=progress or Silence())


def plan_convert(options: ConvertOptions) -> ConversionPlan:
    """What `run_convert` would do with the same options: everything is opened and checked, nothing is written. Raises as convert."""
    return plan_conversion(_opened(options), options)


def run_convert(options: ConvertOptions, *, progress: Progress) -> Conversion:
    """`convert` with its options in one object. Raises as convert."""
    source = _opened(options)
    plan = plan_conversion(source, options)
    for note in plan.notes:
        progress.notice(note)
    started = time.monotonic()
    with resumable_directory(options.output, overwrite=options.overwrite, key=_key(source, options)) as stage:
        resumed = len(stage.done)
        if resumed:
            progress.notice(f"{resumed} of {plan.shards} files were complete already: going on after them")
        written = _write_weights(source, options, plan, stage, progress)
        write_beside(source, options, plan, stage.folder)
        audit(source, stage.folder)
    return Conversion(plan=plan, seconds=time.monotonic() - started, written_bytes=written, resumed_shards=resumed)


def _opened(options: ConvertOptions) -> Source:
    options.check()
    check_output(options.output, overwrite=options.overwrite)
    source = open_source(options)
    folder, output = source.location.folder.resolve(), options.output.resolve()
    if folder == output or output in folder.parents:
        raise UsageError(f"the output `{options.output}` would take the place of the model it is made from", hint="choose another name")
    return source


def _write_weights(source: Source, options: ConvertOptions, plan: ConversionPlan, stage: ResumableStage, progress: Progress) -> int:
    """Shard after shard; the bytes written."""
    targets = {target.name: target for target in source.targets}
    planned = [PlannedTensor(target.name, target.dtype, target.shape) for target in source.targets]
    written = 0
    progress.stage("convert", plan.write_bytes / 1e9, "GB")
    with ExitStack() as stack:
        writer = stack.enter_context(CheckpointWriter(stage.folder, planned, shard_size=options.shard_size, done=stage.done))
        reader = None
        if any(needs_reader(target, source.index) for target in source.targets):
            # Not for copies: importing torch takes seconds and 200 MB.
            from moectl.checkpoint.reader import TensorReader

            reader = stack.enter_context(TensorReader(source.index))
            stack.enter_context(one_thread_each())
        committing = stack.enter_context(ThreadPoolExecutor(1))
        workers = stack.enter_context(Workers(options.n_threads))
        last: Future[None] | None = None
        for file, names in writer.shards.items():
            if file in stage.done:
                progress.advance(sum(targets[name].nbytes for name in names) / 1e9)
                continue
            parts = chain.from_iterable(parts_of(targets[name], source.index, reader, writer) for name in names)
            for nbytes in workers.each(parts):
                written += nbytes
                progress.advance(nbytes / 1e9)
            # A shard is written through to the disk while the next one is made, but no more than one.
            if last is not None:
                last.result()
            last = committing.submit(stage.commit, file)
        if last is not None:
            last.result()
    return written


def _key(source: Source, options: ConvertOptions) -> str:
    """Names this work: what an earlier attempt left is only of use if it was of the same files and options."""
    try:
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in (*source.index.shards, source.location.config_path)]
    except OSError as error:
        raise from_os_error(error, f"read `{source.location.folder}`") from error
    return json.dumps([moectl.__version__, str(source.location.folder.resolve()), files, options.dtype, options.layout, options.shard_size])
