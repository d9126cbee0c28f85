"""What `inspect` found, as data: `Inspection.to_json()` is what `--format json` prints, and its keys are a contract.

Sizes are integers in bytes, parameters or tokens; ratios are fractions of one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from moectl.inspection.cache import KVCache
from moectl.inspection.layers import LayerGroup, LayerInfo, RoutingRule
from moectl.inspection.memory import ExpertParallel, Memory
from moectl.inspection.what_if import Answer

PARTS = ("embedding", "attention", "dense_ffn", "routed_experts", "shared_experts", "router", "norms", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Parameters of the main model, part by part; the parts add up to `total`.

    `active` is what one token multiplies with: the head included, the embedding table not, of the routed experts K per layer. `mtp`
    (multi-token-prediction layers, without their copies of embedding and head) and `other` (values in tensors that belong to neither, such
    as a vision tower) are in none of them. A tied head counts as embedding, and is active. Scales of quantised weights are no parameters.
    """

    total: int
    active: int
    embedding: int
    head: int
    attention: int
    dense_ffn: int
    routed_experts: int
    shared_experts: int
    router: int
    norms: int
    mtp: int
    other: int
    active_routed_experts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRow:
    """One tensor as its header says; codes and scales of a quantised weight are two."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Everything about one checkpoint. `layers` are those of the main stack, `layer_groups` the same with equal ones together.

    `bytes` are by dtype and add up to `total_bytes`: of all tensors in the files, or where `source` is `config` of the main model as the
    configuration lets one expect. `expert_parallel` and `what_if` are None unless asked for; `tensors` is empty unless asked for.
    """

    model: str
    revision: str | None
    source: str
    model_type: str
    architecture: str
    vocab_size: int
    hidden_size: int
    max_positions: int
    tied_head: bool
    mtp_layers: int
    layers: tuple[LayerInfo, ...]
    layer_groups: tuple[LayerGroup, ...]
    rules: tuple[RoutingRule, ...]
    parameters: ParameterCounts
    quantisation: str | None
    files: int
    bytes: dict[str, int]
    context_tokens: int
    flops_per_token: float
    attention_flops_per_token: float
    kv_cache: KVCache
    memory: Memory
    expert_parallel: ExpertParallel | None
    what_if: Answer | None
    tensors: tuple[TensorRow, ...]
    notes: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        """The sum of `bytes`."""
        return sum(self.bytes.values())

    @property
    def routing(self) -> dict[str, Any] | None:
        """The router in numbers and as a formula, None in a dense model; a value in which layers differ is None. All rules: `rules`."""
        if not self.rules:
            return None
        rules = [asdict(rule) for rule in self.rules]
        common = {key: value if all(rule[key] == value for rule in rules) else None for key, value in rules[0].items()}
        del common["layers"], common["count"]
        return {"moe_layers": [info.layer for info in self.layers if info.kind == "moe"], **common, "rules": rules}

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `tensors` only if they were asked for."""
        found = asdict(self)
        del found["rules"]
        optional = {key: found.pop(key) for key in ("expert_parallel", "what_if", "tensors")}
        found["routing"] = self.routing
        found["total_bytes"] = self.total_bytes
        return found | {key: value for key, value in optional.items() if value}
