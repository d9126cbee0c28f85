"""Feed-forward blocks of DeepSeek's configuration keys: fine-grained routed experts beside shared ones (arXiv 2401.06066), the first layers
dense. Shared by the families that took the keys over."""

from __future__ import annotations

from collections.abc import Collection

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.parts import DenseFFN, MoE, Router
from moectl.arch.tensors import TensorRef

RENORMALIZE_EPS = 1e-20
_N_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts")


def deepseek_ffn(
    config: Config,
    prefix: str,
    hidden: int,
    *,
    router: Router | None,
    dense_width: int,
    expert_width: int,
    n_shared: int,
    present: Collection[str],
    bias: bool = False,
    correction_bias: str = "gate.e_score_correction_bias",
) -> tuple[DenseFFN | MoE, dict[str, TensorRef]]:
    """The feed-forward block under `prefix`, dense without a `router`, and its tensors but the routed experts'. Raises ModelError.

    `bias` is that of dense blocks and the shared expert; `correction_bias` the name under `prefix`.
    """
    act = blocks.activation(config)
    if router is None:
        return DenseFFN(width=dense_width, act=act), blocks.ffn_tensors(prefix, hidden, dense_width, bias=bias)
    n_experts = router.n_experts
    moe = MoE(
        router=router,
        expert_width=expert_width,
        act=act,
        experts=blocks.expert_tensors(f"{prefix}.experts", n_experts=n_experts, hidden=hidden, width=expert_width, present=present),
        shared_width=n_shared * expert_width,
        n_shared_experts=n_shared,
    )
    tensors = blocks.linear("router", f"{prefix}.gate", n_experts, hidden)
    if router.correction_bias:
        tensors["correction_bias"] = TensorRef(name=f"{prefix}.{correction_bias}", shape=(n_experts,), keep_float32=True)
    if n_shared:
        tensors |= blocks.ffn_tensors(f"{prefix}.shared_experts", hidden, moe.shared_width, slot_prefix="shared_", bias=bias)
    return moe, tensors


def routes(config: Config, n_layers: int, *, n_dense: int) -> list[bool]:
    """Which layers have experts: from `first_k_dense_replace` on (`n_dense` if absent), each `moe_layer_freq`-th. Raises ModelError."""
    first = config.integer("first_k_dense_replace", default=n_dense, minimum=0)
    every = config.integer("moe_layer_freq", default=1)
    return [i >= first and i % every == 0 for i in range(n_layers)]


def noaux_router(config: Config, *, n_experts: int, top_k: int, n_group: int, topk_group: int, renormalize: bool, scale: float) -> Router:
    """DeepSeek-V3's router (arXiv 2412.19437, section 2.1.2), the arguments being the family's defaults. Raises ModelError."""
    # dots.llm1 calls the score by the method's name.
    config.choice("scoring_func", "sigmoid", "noaux_tc", default="sigmoid")
    config.choice("topk_method", "noaux_tc", default="noaux_tc")
    n_experts = config.integer(config.first(*_N_EXPERTS), default=n_experts)
    n_group, topk_group = groups(config, n_experts, n_group=n_group, topk_group=topk_group)
    return Router(
        n_experts=n_experts,
        top_k=config.integer("num_experts_per_tok", default=top_k),
        score="sigmoid",
        logits_dtype="float32",
        weight_dtype="float32",
        renormalize=config.boolean("norm_topk_prob", default=renormalize),
        renormalize_eps=RENORMALIZE_EPS,
        correction_bias=True,
        scale=config.positive("routed_scaling_factor", default=scale),
        n_group=n_group,
        topk_group=topk_group,
    )


def groups(config: Config, n_experts: int, *, n_group: int, topk_group: int) -> tuple[int, int]:
    """`n_group` and `topk_group`, the arguments being the family's defaults. Raises ModelError if the groups are not of one size."""
    n_group = config.integer("n_group", default=n_group)
    if n_experts % n_group:
        raise config.mismatch(config.first(*_N_EXPERTS), n_experts, f"a multiple of n_group = {n_group}")
    return n_group, config.integer("topk_group", default=topk_group)
