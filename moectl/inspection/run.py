"""What is in this checkpoint, and what will it cost?

    inspect("path/to/checkpoint").parameters.active

Headers and configuration only: a checkpoint of hundreds of gigabytes takes under a second, and torch is not imported.
"""

from __future__ import annotations

from pathlib import Path

from moectl.arch import counts
from moectl.arch.parts import LatentAttention, MoE
from moectl.arch.spec import ModelSpec
from moectl.checkpoint.header import TensorInfo, dtype_bits
from moectl.checkpoint.locate import require_weights
from moectl.errors import ModelError, UsageError
from moectl.inspection.cache import kv_cache
from moectl.inspection.headers import Source, open_headers
from moectl.inspection.layers import layer_groups, layer_infos, routing_rules
from moectl.inspection.memory import expert_parallel, memory
from moectl.inspection.result import Inspection, ParameterCounts, TensorRow
from moectl.inspection.storage import bytes_by_dtype, config_dtype
from moectl.inspection.what_if import answer, parse_what_if

_DEFAULT_CONTEXT = 4096
_MOST_BITS = 64


def inspect(
    model: str | Path,
    *,
    context: int | None = None,
    cache_bits: int = 16,
    ranks: int | None = None,
    what_if: str | None = None,
    tensors: bool = False,
) -> Inspection:
    """Parameters, bytes, FLOPs, cache and memory of a checkpoint, from its headers or, where there are none, its `config.json`.

    `model`: a folder in Hub layout, a `.safetensors` file or `config.json`, a Hub id (only what its cache holds is looked at, no weights
    are fetched), or `demo`. `context`: tokens of the sequence that FLOPs, cache and memory are for; by default 4096, or what the model is
    made for if that is less. `cache_bits`: bits per cached value. `ranks`: also what each rank of expert parallelism holds. `what_if`:
    `EXPERTS,TOP_K[,granularity=G][,shared=S]`, the model as another MoE. `tensors`: also list every tensor.
    Raises UsageError, ModelError, ResourceError.
    """
    if not 1 <= cache_bits <= _MOST_BITS:
        raise UsageError(f"`--cache-bits`: {cache_bits} is not a number of bits", hint="write `16`, `8`, `6` or `4`")
    if context is not None and context < 1:
        raise UsageError(f"`--context`: {context} is not a number of tokens", hint="write it like `4096` or `128k`")
    if ranks is not None and ranks < 1:
        raise UsageError(f"`--ranks`: {ranks} is not a number of ranks", hint="write it like `8`")
    wanted = None if what_if is None else parse_what_if(what_if)
    source = open_headers(str(model))
    spec = source.spec
    tokens = context or min(_DEFAULT_CONTEXT, spec.max_positions)
    stored = bytes_by_dtype(source)
    scores = sum(counts.attention_flops(layer, tokens) for layer in spec.layers)
    return Inspection(
        model=source.location.name,
        revision=source.location.revision,
        source="config" if source.index is None else "headers",
        model_type=spec.model_type,
        architecture=_in_words(spec),
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        max_positions=spec.max_positions,
        tied_head=spec.tied,
        mtp_layers=spec.n_mtp_layers if source.index is None or source.mtp_parameters else 0,
        layers=layer_infos(spec),
        layer_groups=layer_groups(spec),
        rules=routing_rules(spec),
        parameters=_parameters(source),
        quantisation=None if source.quantisation is None else source.quantisation.method,
        files=0 if source.index is None else len(source.index.shards),
        bytes=stored,
        context_tokens=tokens,
        flops_per_token=counts.forward_flops_per_token(spec, tokens),
        attention_flops_per_token=scores,
        kv_cache=kv_cache(spec, context=tokens, bits=cache_bits),
        memory=memory(spec, tokens=tokens, stored_itemsize=max(dtype_bits(dtype) for dtype in stored) // 8),
        expert_parallel=None if ranks is None else expert_parallel(spec, ranks=ranks),
        what_if=None if wanted is None else answer(spec, wanted, context=tokens),
        tensors=_tensors(source) if tensors else (),
        notes=_notes(source, tokens),
    )


def _parameters(source: Source) -> ParameterCounts:
    spec, found = source.spec, counts.count_parameters(source.spec)
    active = sum(layer.ffn.router.top_k * counts.expert_parameters(layer) for layer in spec.layers if isinstance(layer.ffn, MoE))
    return ParameterCounts(
        total=found.total,
        active=found.active,
        embedding=found.embedding,
        head=found.head,
        attention=found.attention,
        dense_ffn=found.dense_ffn,
        routed_experts=found.routed_experts,
        shared_experts=found.shared_experts,
        router=found.router,
        norms=found.norms,
        mtp=source.mtp_parameters,
        other=source.other_parameters,
        active_routed_experts=active,
    )


def _in_words(spec: ModelSpec) -> str:
    """`decoder of 61 layers (3 dense, 58 MoE), width 7,168, latent attention`."""
    moe, total = len(spec.moe_layers), len(spec.layers)
    kinds = f"{total - moe} dense, {moe} MoE" if 0 < moe < total else "all MoE" if moe else "all dense"
    latent = any(isinstance(layer.attention, LatentAttention) for layer in spec.layers)
    shares = any(
        not isinstance(layer.attention, LatentAttention) and layer.attention.n_kv_heads < layer.attention.n_heads for layer in spec.layers
    )
    attention = "latent attention" if latent else "grouped-query attention" if shares else "multi-head attention"
    return f"decoder of {total} layers ({kinds}), width {spec.hidden_size:,}, {attention}"


def _tensors(source: Source) -> tuple[TensorRow, ...]:
    if source.index is None:
        if source.location.revision is None:
            require_weights(source.location)
        raise ModelError(f"the weights of `{source.location.name}` are not here to list", hint="download them, or leave out `--tensors`")
    rows = []
    for info in source.index.tensors.values():
        assert isinstance(info, TensorInfo)
        rows.append(TensorRow(name=info.name, dtype=info.dtype, shape=info.shape, bytes=info.nbytes, file=info.file.name))
    return tuple(rows)


def _notes(source: Source, tokens: int) -> tuple[str, ...]:
    notes = source.notes
    if source.index is None and config_dtype(source) is None:
        notes += ("config.json names no dtype: bytes are those of bfloat16",)
    if tokens > source.spec.max_positions:
        notes += (f"a context of {tokens:,} tokens is longer than the {source.spec.max_positions:,} positions this model is made for",)
    return notes
