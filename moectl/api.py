"""What the commands do, as functions. The CLI and `import moectl` are the two clients.

stats = route_stats("path/to/checkpoint", data=["wiki=wikipedia.txt"], tokens=4096, output=Path("out"))
stats.layers[["layer", "max_vio", "entropy_normalized"]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moectl.arch.text_tower import describe_outside
from moectl.model.decoder import Model
from moectl.model.load import open_checkpoint
from moectl.model.runtime import choose_device, choose_dtype
from moectl.plan import Plan, Progress, Silence
from moectl.report.files import write_route_stats
from moectl.report.saved import load_saved
from moectl.routing.exports import export_bytes
from moectl.routing.options import RouteStatsOptions, SavedRunOptions, parse_exports
from moectl.routing.result import RouteStats
from moectl.routing.run import Job, prepare
from moectl.staging import check_file, check_output, staged_directory, write_file
from moectl.units import format_bytes, format_seconds


def load_model(path: str | Path, dtype: str = "float32", device: str = "cpu", *, mtp: bool = False) -> Model:
    """A checkpoint as a callable, differentiable model: `model(token_ids_BS) -> logits_BSV`.

    `path`: a folder in Hub layout, a `.safetensors` file beside its config.json, a Hub id, or `demo`, the built-in model. Of a multimodal
    model the text model is loaded.
    `dtype`: float32, bfloat16 or auto.
    Parameters start frozen; `model.requires_grad_()` makes them trainable. `mtp` also loads the multi-token-prediction layers (deepseek_v3)
    for `model.predict_ahead`; embedding and head are the main model's, copies in the files are not read. Raises ModelError (also with `mtp`
    where the files lack those layers), ResourceError, UsageError.
    """
    with open_checkpoint(str(path), mtp=mtp) as checkpoint:
        target = choose_device(device)
        chosen, _ = choose_dtype(dtype, stored=checkpoint.stored_dtypes, device=target)
        return Model(checkpoint.spec, checkpoint.weights(dtype=chosen, device=target), mtp=mtp)


def route_stats(
    model: str | Path,
    *,
    data: Sequence[str] = ("demo",),
    tokens: int | None = None,
    seq_len: int = 512,
    batch_tokens: int = 4096,
    dtype: str = "auto",
    device: str = "auto",
    memory: int | None = None,
    threads: int | None = None,
    order: str = "auto",
    output: str | Path | None = None,
    overwrite: bool = False,
    trace: bool = False,
    skip_special: bool = False,
    text_field: str = "text",
    active_experts: int | None = None,
    perplexity: bool = False,
    export: Sequence[str] = (),
    progress: Progress | None = None,
) -> RouteStats:
    """Run text through a model and count what its routers did.

    `data`: `[NAME=]SOURCE` items; by default the built-in domains. `tokens` bounds the tokens of each domain; `seq_len` and `batch_tokens`
    are in tokens; `memory` is the peak RSS allowed, in bytes. `order`: auto, resident or streamed. With `output`, tables are written to
    that folder, all or nothing; `trace` adds every token's experts. `active_experts` runs every MoE layer with another top-k than the
    configuration's. `perplexity` also runs the head: `stats.summary["perplexity"]`, and experts by predicted id. `export`: `FORMAT=PATH`
    items, files of expert loads for eplb, sglang, vllm or ktransformers. Raises UsageError, ModelError, ResourceError or DataError.
    """
    options = RouteStatsOptions(
        model=str(model),
        data=tuple(data),
        tokens=tokens,
        seq_len=seq_len,
        batch_tokens=batch_tokens,
        dtype=dtype,
        device=device,
        memory=memory,
        threads=threads,
        order=order,
        output=None if output is None else Path(output),
        overwrite=overwrite,
        trace=trace,
        skip_special=skip_special,
        text_field=text_field,
        active_experts=active_experts,
        perplexity=perplexity,
        exports=parse_exports(export),
    )
    return run_route_stats(options, progress=progress or Silence())


def load_route_stats(
    source: str | Path, *, output: str | Path | None = None, overwrite: bool = False, export: Sequence[str] = ()
) -> RouteStats:
    """A saved run, or what its trace tells, without the model.

    `source`: a folder that `route_stats` wrote, or a `trace.safetensors`. From a folder the same statistics come back, and with `output`
    the same files. From a trace everything is counted again, but what needs the router's logits is null. `export` as in `route_stats`.
    Raises DataError, UsageError, ResourceError.
    """
    options = SavedRunOptions(
        source=Path(source), output=None if output is None else Path(output), overwrite=overwrite, exports=parse_exports(export)
    )
    return run_saved_route_stats(options)


def plan_route_stats(options: RouteStatsOptions) -> Plan:
    """What `run_route_stats` would do with the same options: everything is opened and checked, nothing is computed or written."""
    _check_outputs(options)
    with prepare(options) as job:
        return job.plan


def run_route_stats(options: RouteStatsOptions, *, progress: Progress) -> RouteStats:
    """`route_stats` with its options in one object. Raises as route_stats."""
    # Before the weights are read: a folder that is in the way should cost the user nothing.
    _check_outputs(options)
    with prepare(options) as job:
        _say_plan(job, progress)
        if options.output is None:
            stats = job.run(progress)
        else:
            with staged_directory(options.output, overwrite=options.overwrite) as folder:
                stats = job.run(progress, trace_path=folder / "trace.safetensors" if options.trace else None)
                write_route_stats(stats, folder, provenance=job.stable_provenance)
        _export(stats, options, job.stable_provenance)
    return stats


def run_saved_route_stats(options: SavedRunOptions) -> RouteStats:
    """`load_route_stats` with its options in one object. Raises as load_route_stats."""
    _check_outputs(options)
    stats, provenance = load_saved(options.source)
    if options.output is not None:
        with staged_directory(options.output, overwrite=options.overwrite) as folder:
            write_route_stats(stats, folder, provenance=provenance)
    _export(stats, options, provenance)
    return stats


def _check_outputs(options: RouteStatsOptions | SavedRunOptions) -> None:
    if options.output is not None:
        check_output(options.output, overwrite=options.overwrite)
    for export in options.exports:
        check_file(export.path, overwrite=options.overwrite)


def _export(stats: RouteStats, options: RouteStatsOptions | SavedRunOptions, provenance: Mapping[str, Any]) -> None:
    files = [(export.path, export_bytes(export, stats, provenance=provenance)) for export in options.exports]
    for path, data in files:
        write_file(path, data, overwrite=options.overwrite)


def _say_plan(job: Job, progress: Progress) -> None:
    plan, longest = job.plan, max(batch.ids_BS.shape[1] for batch in job.batches)
    if longest > job.checkpoint.spec.max_positions:
        progress.notice(
            f"warning: sequences of {longest:,} tokens are longer than the {job.checkpoint.spec.max_positions:,} positions this model is "
            "made for; its routers may do there what they do nowhere else"
        )
    if job.checkpoint.outside:
        progress.notice(describe_outside(job.checkpoint.outside))
    progress.notice(f"{plan.dtype} ({plan.dtype_reason}) on {plan.device}, {plan.order} ({plan.order_reason})")
    if plan.perplexity and not plan.predicted_ids:
        progress.notice("warning: there is not enough memory to count experts by predicted id; raise `--memory`, or lower `--tokens`")
    progress.notice(
        f"{plan.tokens:,} tokens; {format_bytes(plan.read_bytes)} to read; at most {format_bytes(plan.peak_bytes)} of memory; "
        f"{format_seconds(plan.arithmetic_seconds)} of arithmetic"
    )
