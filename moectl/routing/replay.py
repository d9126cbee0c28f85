"""A trace -> the statistics of its run, without the model.

    stats, provenance = stats_from_trace(Path("trace.safetensors"))

The events are fed through the same counters again. A trace holds no logits: what scores decide is null. It holds weights in float16, so
sums of weights agree to three digits; every count is the same.
"""

# Shapes: T tokens of a micro-batch, L MoE layers, K slots, k slots of one layer.

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moectl import provenance
from moectl.data.batching import MicroBatch, micro_batches
from moectl.data.packing import Domain
from moectl.errors import DataError
from moectl.model.events import MoELayerInfo, RoutingEvent
from moectl.routing.assemble import assemble
from moectl.routing.counters import Counters
from moectl.routing.result import RouteStats
from moectl.routing.trace import Trace, read_trace

_MODEL_KEYS = {
    "name": str, "model_type": str, "layers": int, "hidden_size": int, "vocab_size": int, "experts": int, "top_k": int,
    "shared_experts": int, "routing": str,
}  # fmt: skip


def stats_from_trace(path: Path) -> tuple[RouteStats, dict[str, Any]]:
    """The statistics, and the provenance for the files made of them. Raises DataError if `path` is no trace or does not fit together."""
    trace = read_trace(path)
    _check_summary(path, trace)
    domains = _domains(trace)
    batches = micro_batches(domains, trace.provenance["batch_tokens"], skip_special=True)
    layers = tuple(MoELayerInfo(*sizes) for sizes in zip(trace.layers, trace.n_experts, trace.top_k, strict=True))
    counters = Counters(layers, len(domains), batches)
    start = 0
    for batch in batches:
        rows = slice(start, start + batch.ids_BS.size)
        start = rows.stop
        for position in range(len(layers)):
            counters.record(_event(trace, batch, position, rows))
    stable = {**trace.provenance, "from": "trace"}
    nothing = dict.fromkeys(("tokens_per_s", "forward_seconds", "seconds", "read_gb", "peak_rss_gb", "planned_peak_gb"))
    stats = assemble(
        counters,
        trace.domains,
        provenance=provenance.full(stable, circumstances={"trace": str(path)}),
        model=trace.summary["model"],
        data=trace.summary["data"],
        throughput=nothing,
    )
    return stats, stable


def _event(trace: Trace, batch: MicroBatch, position: int, rows: slice) -> RoutingEvent:
    k = trace.top_k[position]
    ids_Tk = torch.from_numpy(trace.expert_ids_TLK[rows, position, :k].astype(np.int64))
    weights_Tk = torch.from_numpy(trace.weights_TLK[rows, position, :k].astype(np.float32))
    if trace.pad_id is not None:
        ids_Tk = ids_Tk.masked_fill(ids_Tk == trace.pad_id, -1)
    # Slot 0 is the first choice, though float16 may have rounded another weight to the same number: it gets the next one up then.
    tied_T = (weights_Tk[:, 1:] == weights_Tk[:, :1]).any(1)
    weights_Tk[tied_T, 0] = torch.nextafter(weights_Tk[tied_T, 0], torch.tensor(torch.inf))
    return RoutingEvent(trace.layers[position], batch, ids_Tk, weights_Tk, None)


def _domains(trace: Trace) -> list[Domain]:
    """The text as it was packed; what was left out of the counts is marked as special."""
    starts_Q, ends_Q = trace.sequence_offsets_Q[:-1], trace.sequence_offsets_Q[1:]
    domains = []
    for domain, name in enumerate(trace.domains):
        here_Q = trace.domain_ids_Q == domain
        span = slice(int(starts_Q[here_Q].min()), int(ends_Q[here_Q].max()))
        token_ids, offsets = trace.token_ids_T[span], np.concatenate([[0], np.cumsum((ends_Q - starts_Q)[here_Q])]).astype(np.int64)
        digest = hashlib.sha256(np.ascontiguousarray(token_ids, "<i4").data)
        digest.update(np.ascontiguousarray(offsets, "<i8").data)
        n_documents = trace.summary["data"][name]["documents"]
        domains.append(Domain(name, token_ids, offsets, n_documents, ~trace.counted_T[span], digest.hexdigest()))
    return domains


def _check_summary(path: Path, trace: Trace) -> None:
    """Raise DataError unless the trace says enough of its run, and says of its text what it holds."""

    def refuse(reason: str) -> DataError:
        return DataError(
            f"`{path}` cannot be counted again: {reason}", hint="name a `trace.safetensors` that `moectl route-stats --trace` wrote"
        )

    model, data = trace.summary.get("model"), trace.summary.get("data")
    if not isinstance(model, dict) or any(type(model.get(key)) is not kind for key, kind in _MODEL_KEYS.items()):
        raise refuse("its metadata does not describe the model")
    for key in ("batch_tokens", "dtype", "device"):
        if type(trace.provenance.get(key)) is not (int if key == "batch_tokens" else str):
            raise refuse(f"its provenance has no `{key}`")
    if trace.provenance["batch_tokens"] < 1:
        raise refuse("its provenance has no `batch_tokens`")
    if len(set(trace.layers)) != len(trace.layers) or list(trace.layers) != sorted(trace.layers) or max(trace.top_k) > 255:
        raise refuse("its layers are not in order, or pick more than 255 experts")
    if not isinstance(data, dict) or list(data) != list(trace.domains):
        raise refuse("its metadata does not describe its domains")
    if (np.diff(trace.domain_ids_Q.astype(np.int64)) < 0).any() or len(np.unique(trace.domain_ids_Q)) != len(trace.domains):
        raise refuse("its sequences are not in the order of its domains")
    lengths_Q = np.diff(trace.sequence_offsets_Q)
    for domain, name in enumerate(trace.domains):
        here_Q, said = trace.domain_ids_Q == domain, data[name]
        expected = {"sequences": int(here_Q.sum()), "tokens": int(lengths_Q[here_Q].sum())}
        if not isinstance(said, dict) or type(said.get("documents")) is not int or any(said.get(key) != n for key, n in expected.items()):
            raise refuse(f"its metadata does not describe the text of `{name}`")
    if trace.token_ids_T.size and int(trace.token_ids_T.min()) < 0:
        raise refuse("it holds a negative token id")
