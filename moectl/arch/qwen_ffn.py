"""Router and feed-forward blocks of Qwen's MoE configuration keys, shared by the families that took them over."""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.parts import DenseFFN, MoE, Router
from moectl.arch.tensors import TensorRef


def qwen_router(config: Config, *, n_experts: int, top_k: int) -> Router:
    """The top k of a softmax in float32 over logits of the model's dtype; the arguments are the family's defaults. Raises ModelError."""
    return Router(
        n_experts=config.integer(config.first("num_experts", "num_local_experts"), default=n_experts),
        top_k=config.integer("num_experts_per_tok", default=top_k),
        score="softmax",
        logits_dtype="model",
        weight_dtype="model",
        renormalize=config.boolean("norm_topk_prob", default=False),
    )


def routes(config: Config, n_layers: int) -> list[bool]:
    """Which layers have experts: each `decoder_sparse_step`-th, but for `mlp_only_layers`. Raises ModelError."""
    step, dense = config.integer("decoder_sparse_step", default=1), config.integers("mlp_only_layers")
    return [i not in dense and (i + 1) % step == 0 for i in range(n_layers)]


def qwen_ffn(
    config: Config,
    prefix: str,
    hidden: int,
    *,
    router: Router | None,
    dense_width: int,
    expert_width: int,
    shared_width: int = 0,
    present: Collection[str],
) -> tuple[DenseFFN | MoE, dict[str, TensorRef]]:
    """The feed-forward block under `prefix`, dense without a `router`, and its tensors but the routed experts'. Raises ModelError.

    The shared expert, if there is one, is gated: its output is multiplied by sigmoid(x g), a number for each token.
    """
    act = blocks.activation(config)
    if router is None:
        return DenseFFN(width=dense_width, act=act), blocks.ffn_tensors(prefix, hidden, dense_width)
    moe = MoE(
        router=router,
        expert_width=expert_width,
        act=act,
        experts=blocks.expert_tensors(f"{prefix}.experts", n_experts=router.n_experts, hidden=hidden, width=expert_width, present=present),
        shared_width=shared_width,
        n_shared_experts=int(shared_width > 0),
        gated_shared=shared_width > 0,
    )
    tensors = blocks.linear("router", f"{prefix}.gate", router.n_experts, hidden)
    if shared_width:
        tensors |= blocks.ffn_tensors(f"{prefix}.shared_expert", hidden, shared_width, slot_prefix="shared_")
        tensors |= blocks.linear("shared_expert_gate", f"{prefix}.shared_expert_gate", 1, hidden)
    return moe, tensors
