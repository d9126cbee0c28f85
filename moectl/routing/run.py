"""One `route-stats` run: open everything, plan it, push the tokens through, turn what was counted into tables.

    with prepare(options) as job:
        print(job.plan.rows)
        stats = job.run(Silence())

Writes nothing but the trace, if it is given a path for it.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from moectl import provenance
from moectl.arch.active_experts import with_active_experts
from moectl.arch.parts import MoE
from moectl.arch.spec import ModelSpec
from moectl.data.batching import MicroBatch, micro_batches
from moectl.data.packing import Domain, load_domains
from moectl.data.tokenizer import has_tokenizer, load_tokenizer
from moectl.model.decoder import Model
from moectl.model.events import MoELayerInfo, Recorder, RoutingEvent
from moectl.model.load import Checkpoint, open_checkpoint
from moectl.model.runtime import choose_device, choose_dtype, dtype_name, set_threads
from moectl.model.schedules import OnPrediction, moe_layer_infos, run_layer_major, run_token_major
from moectl.plan import Plan, Progress
from moectl.routing.assemble import assemble
from moectl.routing.budget import plan_run
from moectl.routing.counters import Counters
from moectl.routing.counting.predicted import KeptExperts
from moectl.routing.options import RouteStatsOptions
from moectl.routing.perplexity import Losses
from moectl.routing.result import RouteStats
from moectl.routing.token_classes import class_table
from moectl.routing.trace import TraceRecorder


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run that is ready to start: everything is open, checked and planned."""

    options: RouteStatsOptions
    checkpoint: Checkpoint
    domains: list[Domain]
    batches: list[MicroBatch]
    layers: tuple[MoELayerInfo, ...]
    config_top_k: int
    """Experts per token by the configuration; `checkpoint.spec` has the number of this run."""
    dtype: torch.dtype
    device: torch.device
    plan: Plan

    @property
    def stable_provenance(self) -> dict[str, Any]:
        """What determines the numbers; equal runs share it, whatever their schedule or output."""
        location, options = self.checkpoint.location, self.options
        return provenance.stable(
            command="route-stats",
            model=location.name,
            revision=location.revision,
            config=self.checkpoint.config,
            settings={
                "data_hash": {domain.name: domain.sha256 for domain in self.domains},
                "dtype": dtype_name(self.dtype),
                "device": self.device.type,
                "batch_tokens": options.batch_tokens,
                "skip_special": options.skip_special,
                "active_experts": options.active_experts,
                "perplexity": options.perplexity,
                "predicted_ids": self.plan.predicted_ids,
                # Nothing is drawn at random.
                "seed": None,
            },
        )

    def run(self, progress: Progress, *, trace_path: Path | None = None) -> RouteStats:
        """Push every token through and count. `trace_path` also writes the trace there. Raises ModelError, ResourceError."""
        names = [domain.name for domain in self.domains]
        folder = self.checkpoint.location.folder
        tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
        classes_V = None if tokenizer is None else class_table(tokenizer, self.batches)
        counters = Counters(self.layers, len(self.domains), self.batches, class_of_id_V=classes_V)
        losses = Losses(counters.blocks, self.batches) if self.options.perplexity else None
        kept = KeptExperts(self.layers, self.batches) if self.plan.predicted_ids else None
        described = {"model": describe_model(self.checkpoint, self.config_top_k), "data": describe_data(self.domains)}
        with contextlib.ExitStack() as stack:
            recorders: list[Recorder] = [counters]
            if kept is not None:
                recorders.append(kept)
            if trace_path is not None:
                trace = TraceRecorder(
                    trace_path, self.layers, self.batches, domain_names=names, provenance=self.stable_provenance, summary=described
                )
                recorders.append(stack.enter_context(trace))
            seconds = self._forward(_Fan(recorders), progress, on_prediction=None if losses is None else losses.add)
        if losses is not None and kept is not None:
            counters.count_predicted(kept, self.batches, losses.ids_T, vocab_size=self.checkpoint.spec.vocab_size)
        return assemble(
            counters,
            names,
            provenance=provenance.full(
                self.stable_provenance,
                circumstances={
                    "order": self.plan.order,
                    "threads": torch.get_num_threads(),
                    "tokens": self.options.tokens,
                    "seq_len": self.options.seq_len,
                    "sources": list(self.options.data),
                },
            ),
            **described,
            perplexity=None if losses is None else losses.summary(names),
            tokenizer=tokenizer,
            throughput={
                "tokens_per_s": round(self.plan.tokens / seconds, 3),
                "forward_seconds": round(seconds, 3),
                "seconds": round(time.time() - psutil.Process().create_time(), 3),
                "read_gb": round(self.checkpoint.reader.bytes_read / 1e9, 6),
                "peak_rss_gb": round(peak_rss_bytes() / 1e9, 3),
                "planned_peak_gb": round(self.plan.peak_bytes / 1e9, 3),
            },
        )

    def _forward(self, recorder: Recorder, progress: Progress, *, on_prediction: OnPrediction | None) -> float:
        """Run the planned schedule; seconds of the pass, weight reads included."""
        weights = self.checkpoint.weights(dtype=self.dtype, device=self.device)
        start = time.perf_counter()
        if self.plan.order == "resident":
            progress.stage("reading weights", self.plan.read_bytes / 1e9, "GB")
            read = 0

            def on_layer(_layer: int) -> None:
                nonlocal read
                progress.advance((self.checkpoint.reader.bytes_read - read) / 1e9)
                read = self.checkpoint.reader.bytes_read

            model = Model(self.checkpoint.spec, weights, on_layer=on_layer)
            progress.stage("routing tokens", self.plan.tokens, "tokens")
            run_token_major(model, self.batches, recorder, advance=progress.advance, on_prediction=on_prediction)
        else:
            progress.stage("routing tokens, layer by layer", self.plan.tokens, "tokens")
            run_layer_major(weights, self.batches, recorder, advance=progress.advance, on_prediction=on_prediction)
        return time.perf_counter() - start


@contextlib.contextmanager
def prepare(options: RouteStatsOptions) -> Iterator[Job]:
    """Open the checkpoint and the data, check both, and plan. Reads no weights.

    Raises UsageError, ModelError, DataError, ResourceError.
    """
    set_threads(options.threads)
    device = choose_device(options.device)
    with open_checkpoint(options.model) as checkpoint:
        config_top_k = moe_layer_infos(checkpoint.spec)[0].top_k
        if options.active_experts is not None:
            checkpoint = replace(checkpoint, spec=with_active_experts(checkpoint.spec, options.active_experts))
        layers = moe_layer_infos(checkpoint.spec)
        dtype, dtype_reason = choose_dtype(options.dtype, stored=checkpoint.stored_dtypes, device=device)
        domains = load_domains(
            options.data,
            folder=checkpoint.location.folder,
            vocab_size=checkpoint.spec.vocab_size,
            seq_len=options.seq_len,
            tokens=options.tokens,
            text_field=options.text_field,
        )
        batches = micro_batches(domains, options.batch_tokens, skip_special=options.skip_special)
        plan = plan_run(checkpoint, options, batches, dtype=dtype, dtype_reason=dtype_reason, device=device, config_top_k=config_top_k)
        yield Job(
            options=options,
            checkpoint=checkpoint,
            domains=domains,
            batches=batches,
            layers=layers,
            config_top_k=config_top_k,
            dtype=dtype,
            device=device,
            plan=plan,
        )


def describe_model(checkpoint: Checkpoint, config_top_k: int) -> dict[str, Any]:
    """The `model` object of summary.json; `config_top_k` is what the configuration says, whatever the run did."""
    spec: ModelSpec = checkpoint.spec
    first = spec.moe_layers[0].ffn
    assert isinstance(first, MoE)
    return {
        "name": checkpoint.location.name,
        "model_type": spec.model_type,
        "layers": len(spec.layers),
        "moe_layers": [layer.index for layer in spec.moe_layers],
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "experts": first.router.n_experts,
        "top_k": first.router.top_k,
        "top_k_config": config_top_k,
        "shared_experts": first.n_shared_experts,
        "routing": first.router.formula(),
        "mtp_layers_skipped": spec.n_mtp_layers,
    }


def describe_data(domains: Sequence[Domain]) -> dict[str, dict[str, Any]]:
    """The `data` object of summary.json."""
    return {
        domain.name: {
            "documents": domain.n_documents,
            "sequences": domain.n_sequences,
            "tokens": domain.n_tokens,
            "hash": domain.sha256,
        }
        for domain in domains
    }


def peak_rss_bytes() -> int:
    """Peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Fan:
    """One recorder that passes events on to several."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._recorders = recorders

    def record(self, event: RoutingEvent) -> None:
        for recorder in self._recorders:
            recorder.record(event)
