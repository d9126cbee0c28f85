"""The plan of a run: what it reads, holds and computes, whether that fits, and in which order to do it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence

import psutil
import torch

from moectl import plan as planning
from moectl.arch import counts
from moectl.arch.parts import MoE
from moectl.checkpoint.header import TensorInfo, dtype_bits
from moectl.checkpoint.quantised import QuantisedInfo
from moectl.data.batching import MicroBatch
from moectl.model import head
from moectl.model.load import Checkpoint
from moectl.model.runtime import dtype_name, gemm_flops_per_second
from moectl.model.schedules import moe_layer_infos
from moectl.plan import ForwardSizes, Plan
from moectl.routing.counting import arrays, predicted
from moectl.routing.options import RouteStatsOptions

# What a run may take without `--memory`: this share of what is available now, beside what the process has already.
_SHARE_OF_AVAILABLE = 0.9


def plan_run(
    checkpoint: Checkpoint,
    options: RouteStatsOptions,
    batches: Sequence[MicroBatch],
    *,
    dtype: torch.dtype,
    dtype_reason: str,
    device: torch.device,
    config_top_k: int,
) -> Plan:
    """Plan a run over `batches`; `checkpoint.spec` has the run's own experts per token.

    Raises ResourceError if memory or disk cannot hold it.
    """
    sizes = forward_sizes(checkpoint, batches)
    stored = max(_stored_itemsize(info) for info in checkpoint.stored)
    # First, so that what the libraries allocate on first use is part of the process.
    flops_per_s = gemm_flops_per_second(dtype, device)
    process = psutil.Process().memory_info().rss + planning.MARGIN_BYTES + _counting_bytes(checkpoint, batches)
    budget = options.memory or int(psutil.virtual_memory().available * _SHARE_OF_AVAILABLE) + process
    resident = planning.resident_bytes(sizes, itemsize=dtype.itemsize, stored_itemsize=stored)
    streamed = planning.streamed_bytes(sizes, itemsize=dtype.itemsize, stored_itemsize=stored)
    spec = checkpoint.spec
    if options.perplexity:
        rows = head.block_rows(spec.vocab_size, spec.hidden_size)
        working = planning.head_bytes(sizes, vocab_rows=rows, chunk_tokens=head.CHUNK_TOKENS, itemsize=dtype.itemsize)
        resident += working
        streamed += working + planning.streamed_head_bytes(sizes, vocab_rows=rows, itemsize=dtype.itemsize, stored_itemsize=stored)
    if device.type == "cuda":
        # Weights and activations live on the device; the host holds one tensor at a time.
        free, _ = torch.cuda.mem_get_info(device)
        order, reason = planning.choose_order(options.order, resident=resident, streamed=streamed, budget=free)
        peak = process + sizes.largest_tensor * (stored + dtype.itemsize)
        planning.require_memory(peak, budget, hint="raise `--memory`")
    else:
        order, reason = planning.choose_order(options.order, resident=process + resident, streamed=process + streamed, budget=budget)
        peak = process + (resident if order == "resident" else streamed)
    kept = predicted.planned_bytes(moe_layer_infos(spec), sizes.tokens)
    predicted_ids = options.perplexity and peak + kept <= budget
    flops = counts.forward_flops_per_token if options.perplexity else counts.routing_flops_per_token
    longest = max(batch.ids_BS.shape[1] for batch in batches)
    return Plan(
        model=f"{checkpoint.location.name} ({checkpoint.spec.model_type})",
        tokens=sizes.tokens,
        sequences=sum(batch.ids_BS.shape[0] for batch in batches),
        dtype=dtype_name(dtype),
        dtype_reason=dtype_reason,
        device=str(device),
        order=order,
        order_reason=reason,
        read_bytes=_read_bytes(checkpoint, head_again=options.perplexity and order == "streamed"),
        peak_bytes=peak + kept * predicted_ids,
        budget_bytes=budget,
        flops=sizes.tokens * flops(spec, longest),
        flops_per_s=flops_per_s,
        output_bytes=_output_bytes(checkpoint, options, sizes),
        top_k=moe_layer_infos(spec)[0].top_k,
        top_k_config=config_top_k,
        perplexity=options.perplexity,
        predicted_ids=predicted_ids,
    )


def _stored_itemsize(info: TensorInfo | QuantisedInfo) -> int:
    """Bytes of a value on disk, rounded up; of quantised weights at least two, which leaves room to decode."""
    if isinstance(info, TensorInfo):
        return dtype_bits(info.dtype) // 8
    return max(2, -(-info.nbytes // max(1, math.prod(info.shape))))


def forward_sizes(checkpoint: Checkpoint, batches: Sequence[MicroBatch]) -> ForwardSizes:
    """The sizes of the model and the data that decide memory."""
    spec = checkpoint.spec
    routers = [layer.ffn.router for layer in spec.moe_layers if isinstance(layer.ffn, MoE)]
    return ForwardSizes(
        weights=counts.count_parameters(spec).total,
        largest_layer=max(counts.layer_parameters(layer) for layer in spec.layers),
        largest_expert=max(counts.expert_parameters(layer) for layer in spec.layers),
        largest_tensor=max(counts.read_values(ref) for ref in spec.refs()),
        hidden=spec.hidden_size,
        attention_width=max(counts.attention_width(layer) for layer in spec.layers),
        query_width=max(counts.query_width(layer) for layer in spec.layers),
        ffn_values=max(counts.ffn_values(layer) for layer in spec.layers),
        n_experts=max(router.n_experts for router in routers),
        top_k=max(router.top_k for router in routers),
        tokens=sum(batch.ids_BS.size for batch in batches),
        batch_tokens=max(batch.ids_BS.size for batch in batches),
    )


def _counting_bytes(checkpoint: Checkpoint, batches: Sequence[MicroBatch]) -> int:
    """Memory of the counters: what they keep, and what they hold while they count one event."""
    infos = moe_layer_infos(checkpoint.spec)
    kept = arrays.planned_bytes(arrays.sizes(infos, max(batch.domain for batch in batches) + 1, batches))
    E, K, tokens = max(info.n_experts for info in infos), max(info.top_k for info in infos), max(batch.ids_BS.size for batch in batches)
    # Per token and expert: scores and two more float32 matrices, an int32 one, a byte mask; per slot some int64 and pairs of slots.
    return kept + tokens * (17 * E + 8 * K * (8 + 2 * K)) + 8 * 3 * E * E


def _read_bytes(checkpoint: Checkpoint, *, head_again: bool) -> int:
    """Bytes of every tensor the spec uses; with `head_again` a tied head is read as the embedding and once more as the head."""
    tensors, spec = checkpoint.index.tensors, checkpoint.spec
    again = tensors[spec.tensors["head"].name].nbytes if head_again and spec.tied else 0
    return again + sum(tensors[name].nbytes for name in {ref.name for ref in spec.refs()})


def _output_bytes(checkpoint: Checkpoint, options: RouteStatsOptions, sizes: ForwardSizes) -> int:
    """Size of the output folder, and whether its disk has room for it. Raises ResourceError."""
    if options.output is None:
        return 0
    n_layers = len(checkpoint.spec.moe_layers)
    total = n_layers * sizes.n_experts * 8 * (sizes.n_experts + 32) + 1_000_000
    if options.trace:
        total += sizes.tokens * (5 + n_layers * sizes.top_k * 4)
    folder = options.output.absolute()
    while not folder.exists():
        folder = folder.parent
    planning.check_disk(total, shutil.disk_usage(folder).free, str(options.output))
    return total
