"""What the commands do, as functions. The CLI and `import moectl` are the two clients.

stats = route_stats("path/to/checkpoint", data=["wiki=wikipedia.txt"], tokens=4096, output=Path("out"))
stats.layers[["layer", "max_vio", "entropy_normalized"]]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moectl.model.decoder import Model
from moectl.model.load import open_checkpoint
from moectl.model.runtime import choose_device, choose_dtype
from moectl.plan import Plan, Progress, Silence
from moectl.report.files import write_route_stats
from moectl.routing.options import RouteStatsOptions
from moectl.routing.result import RouteStats
from moectl.routing.run import Job, prepare
from moectl.staging import check_output, staged_directory
from moectl.units import format_bytes, format_seconds


def load_model(path: str | Path, dtype: str = "float32", device: str = "cpu", *, mtp: bool = False) -> Model:
    """A checkpoint as a callable, differentiable model: `model(token_ids_BS) -> logits_BSV`.

    `path`: a folder in Hub layout, a `.safetensors` file beside its config.json, a Hub id, or `demo`, the built-in model.
    `dtype`: float32, bfloat16 or auto.
    Parameters start frozen; `model.requires_grad_()` makes them trainable. `mtp` also loads the multi-token-prediction layers (deepseek_v3)
    for `model.predict_ahead`; embedding and head are the main model's, copies in the files are not read. Raises ModelError (also with `mtp`
    where the files lack those layers), ResourceError, UsageError.
    """
    with open_checkpoint(str(path), mtp=mtp) as checkpoint:
        target = choose_device(device)
        chosen, _ = choose_dtype(dtype, stored=[info.dtype for info in checkpoint.index.tensors.values()], device=target)
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
    progress: Progress | None = None,
) -> RouteStats:
    """Run text through a model and count what its routers did.

    `data`: `[NAME=]SOURCE` items; by default the built-in domains. `tokens` bounds the tokens of each domain; `seq_len` and `batch_tokens`
    are in tokens; `memory` is the peak RSS allowed, in bytes. `order`: auto, resident or streamed. With `output`, tables are written to
    that folder, all or nothing; `trace` adds every token's experts. Raises UsageError, ModelError, ResourceError or DataError.
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
    )
    return run_route_stats(options, progress=progress or Silence())


def plan_route_stats(options: RouteStatsOptions) -> Plan:
    """What `run_route_stats` would do with the same options: everything is opened and checked, nothing is computed or written."""
    if options.output is not None:
        check_output(options.output, overwrite=options.overwrite)
    with prepare(options) as job:
        return job.plan


def run_route_stats(options: RouteStatsOptions, *, progress: Progress) -> RouteStats:
    """`route_stats` with its options in one object. Raises as route_stats."""
    if options.output is None:
        with prepare(options) as job:
            _say_plan(job, progress)
            return job.run(progress)
    # Before the weights are read: a folder that is in the way should cost the user nothing.
    check_output(options.output, overwrite=options.overwrite)
    with prepare(options) as job, staged_directory(options.output, overwrite=options.overwrite) as folder:
        _say_plan(job, progress)
        stats = job.run(progress, trace_path=folder / "trace.safetensors" if options.trace else None)
        write_route_stats(stats, folder, provenance=job.stable_provenance)
    return stats


def _say_plan(job: Job, progress: Progress) -> None:
    plan, longest = job.plan, max(batch.ids_BS.shape[1] for batch in job.batches)
    if longest > job.checkpoint.spec.max_positions:
        progress.notice(
            f"warning: sequences of {longest:,} tokens are longer than the {job.checkpoint.spec.max_positions:,} positions this model is "
            "made for; its routers may do there what they do nowhere else"
        )
    progress.notice(f"{plan.dtype} ({plan.dtype_reason}) on {plan.device}, {plan.order} ({plan.order_reason})")
    progress.notice(
        f"{plan.tokens:,} tokens; {format_bytes(plan.read_bytes)} to read; at most {format_bytes(plan.peak_bytes)} of memory; "
        f"{format_seconds(plan.arithmetic_seconds)} of arithmetic"
    )
