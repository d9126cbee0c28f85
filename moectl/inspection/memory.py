"""Memory a model takes in bfloat16: at once, streamed layer by layer, and on each rank of expert parallelism.

memory(spec, tokens=4096, stored_itemsize=2).streamed_bytes
"""

from __future__ import annotations

from dataclasses import dataclass

from moectl import plan
from moectl.arch import counts
from moectl.arch.parts import MoE
from moectl.arch.spec import ModelSpec
from moectl.arch.tensors import TensorRef
from moectl.errors import UsageError

ITEMSIZE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes in bfloat16, by the formulas that plan a run, beside the process itself (`process_bytes` at most, without its libraries).

    `resident_bytes`: all weights and one sequence of `tokens`. `streamed_bytes`: one layer, one expert, and that sequence.
    """

    dtype: str
    tokens: int
    weights_bytes: int
    resident_bytes: int
    streamed_bytes: int
    process_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertParallel:
    """What each rank holds in bfloat16: its share of the routed experts of every layer, and a copy of everything else.

    Where `ranks` does not divide the experts of a layer, the numbers are those of the fullest rank.
    """

    ranks: int
    dtype: str
    experts_per_rank: int
    """Of one layer, the largest."""
    routed_bytes_per_rank: int
    replicated_bytes_per_rank: int
    bytes_per_rank: int
    even: bool


def memory(spec: ModelSpec, *, tokens: int, stored_itemsize: int) -> Memory:
    """Memory to run one sequence of `tokens`; `stored_itemsize` is the widest in the files, in bytes."""
    sizes = _sizes(spec, tokens)
    return Memory(
        dtype="bfloat16",
        tokens=tokens,
        weights_bytes=sizes.weights * ITEMSIZE,
        resident_bytes=plan.resident_bytes(sizes, itemsize=ITEMSIZE, stored_itemsize=stored_itemsize),
        streamed_bytes=plan.streamed_bytes(sizes, itemsize=ITEMSIZE, stored_itemsize=stored_itemsize),
        process_bytes=plan.MARGIN_BYTES,
    )


def expert_parallel(spec: ModelSpec, *, ranks: int) -> ExpertParallel:
    """The experts of every layer spread over `ranks`. Raises UsageError without experts, or with more ranks than experts."""
    if not spec.moe_layers:
        raise UsageError(f"`--ranks`: a `{spec.model_type}` model without experts has none to spread", hint="leave out `--ranks`")
    routed, most, even = 0, 0, True
    for layer in spec.moe_layers:
        assert isinstance(layer.ffn, MoE)
        n_experts = layer.ffn.router.n_experts
        if ranks > n_experts:
            raise UsageError(
                f"`--ranks`: {ranks} ranks are more than the {n_experts} experts of layer {layer.index}", hint=f"at most {n_experts}"
            )
        here = -(-n_experts // ranks)
        most, even = max(most, here), even and n_experts % ranks == 0
        routed += here * counts.expert_parameters(layer)
    parameters = counts.count_parameters(spec)
    replicated = parameters.total - parameters.routed_experts
    return ExpertParallel(
        ranks=ranks,
        dtype="bfloat16",
        experts_per_rank=most,
        routed_bytes_per_rank=routed * ITEMSIZE,
        replicated_bytes_per_rank=replicated * ITEMSIZE,
        bytes_per_rank=(routed + replicated) * ITEMSIZE,
        even=even,
    )


def _sizes(spec: ModelSpec, tokens: int) -> plan.ForwardSizes:
    routers = [layer.ffn.router for layer in spec.layers if isinstance(layer.ffn, MoE)]
    return plan.ForwardSizes(
        weights=counts.count_parameters(spec).total,
        largest_layer=max(counts.layer_parameters(layer) for layer in spec.layers),
        largest_expert=max(counts.expert_parameters(layer) for layer in spec.layers),
        largest_tensor=max(counts.read_values(ref) for ref in _distinct(spec)),
        hidden=spec.hidden_size,
        attention_width=max(counts.attention_width(layer) for layer in spec.layers),
        query_width=max(counts.query_width(layer) for layer in spec.layers),
        ffn_values=max(counts.ffn_values(layer) for layer in spec.layers),
        n_experts=max((router.n_experts for router in routers), default=0),
        top_k=max((router.top_k for router in routers), default=0),
        tokens=tokens,
        batch_tokens=tokens,
    )


def _distinct(spec: ModelSpec) -> list[TensorRef]:
    """Every weight, but of a layer's experts, which are alike, the first only."""
    refs = list(spec.tensors.values())
    for layer in spec.layers:
        refs += layer.tensors.values()
        if isinstance(layer.ffn, MoE):
            refs += layer.ffn.experts.refs(0)
    return refs
