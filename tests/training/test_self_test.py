"""The test at the start of training: healthy models pass, whatever their routers look like; every disconnected loss is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moectl.arch.parts import MoE
from moectl.arch.registry import build_spec
from moectl.arch.spec import Layer, ModelSpec
from moectl.arch.tensors import TensorRef
from moectl.errors import ModelError, UsageError
from moectl.model import decoder
from moectl.model.decoder import Model
from moectl.model.experts import ExpertWeights
from moectl.training.balance import BalanceOptions
from moectl.training.self_test import check_auxiliary_gradient

MIXTRAL = {
    "model_type": "mixtral",
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 20,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_nextn_predict_layers": 2,
}
ALL = BalanceOptions(switch_alpha=0.01, sequence_alpha=1e-4, z_alpha=1e-3)
ONE = {name: BalanceOptions(**{name: 0.1}) for name in ("switch_alpha", "sequence_alpha", "z_alpha")}
NAMES = {"switch_alpha": "Switch loss", "sequence_alpha": "sequence-wise balance loss", "z_alpha": "z-loss"}
IDS_BS = torch.randint(0, 61, (3, 10), generator=torch.Generator().manual_seed(0))


class RandomWeights:
    """A WeightSource of random weights."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.generator = torch.Generator().manual_seed(0)

    def read(self, ref: TensorRef) -> torch.Tensor:
        noise = torch.randn(ref.part_shape, generator=self.generator)
        return 1 + 0.1 * noise if noise.ndim == 1 else noise / ref.part_shape[-1] ** 0.5

    def layer(self, layer: Layer) -> dict[str, torch.Tensor]:
        return {slot: self.read(ref) for slot, ref in layer.tensors.items()}

    def get(self, layer: int, expert: int) -> ExpertWeights:
        ffn = self.spec.layer(layer).ffn
        assert isinstance(ffn, MoE)
        return ExpertWeights(*(self.read(ref) for ref in ffn.experts.refs(expert)))


def make_model(config: dict[str, Any], *, mtp: bool = False, **keys: Any) -> Model:
    spec = build_spec({**config, **keys})
    return Model(spec, RandomWeights(spec), mtp=mtp).requires_grad_()


def router_of(model: Model, layer: int) -> torch.nn.Parameter:
    block = model.layers[layer] if layer < len(model.layers) else model.mtp[layer - len(model.layers)].block
    return block.weights["router"]


@pytest.mark.parametrize("config", [MIXTRAL, DEEPSEEK])
@pytest.mark.parametrize("options", [ALL, *ONE.values()])
def test_a_healthy_model_passes_and_stays_as_it_was(config, options):
    model = make_model(config, mtp=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    random_state = torch.get_rng_state()
    with torch.no_grad():
        check_auxiliary_gradient(model, IDS_BS, options)
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, p in model.named_parameters():
        assert p.grad is None, name
        assert p.requires_grad, name
        assert torch.equal(p, before[name]), name


def test_nothing_is_run_without_an_auxiliary_loss(monkeypatch):
    model = make_model(MIXTRAL)
    monkeypatch.setattr(Model, "hidden", None)
    check_auxiliary_gradient(model, IDS_BS, BalanceOptions(bias_gamma=1e-3))


@pytest.mark.parametrize("options", ONE.values())
def test_zero_routers_low_precision_and_small_inputs_pass(options):
    model = make_model(MIXTRAL)
    for layer in range(3):
        torch.nn.init.zeros_(router_of(model, layer))
    check_auxiliary_gradient(model, IDS_BS, options)
    check_auxiliary_gradient(make_model(MIXTRAL).bfloat16(), IDS_BS, options)
    with torch.no_grad():
        for layer in range(3):
            model.layers[layer].weights["ffn_norm"] *= 1e-6
    check_auxiliary_gradient(model, IDS_BS, options)


def test_an_exactly_even_load_is_no_failure(monkeypatch):
    # One token a sequence, and the routers send the two tokens to all four experts once: no gradient here, but at other weights.
    model = make_model(MIXTRAL, num_local_experts=4, num_hidden_layers=1)
    ids_BS = torch.tensor([[3], [7]])
    seen = []
    route = decoder.route

    def keep(spec, x_TH, weights):
        routing = route(spec, x_TH, weights)
        seen.append((x_TH.detach(), routing))
        return routing

    monkeypatch.setattr(decoder, "route", keep)
    model.hidden(ids_BS)
    wanted_TE = torch.tensor([[3.0, 3.0, -3.0, -3.0], [-3.0, -3.0, 3.0, 3.0]])
    with torch.no_grad():
        router_of(model, 0).copy_(torch.linalg.lstsq(seen[0][0], wanted_TE).solution.T)
    model.hidden(ids_BS)
    assert seen[1][1].expert_ids_TK.sort().values.tolist() == [[0, 1], [2, 3]]
    check_auxiliary_gradient(model, ids_BS, ONE["switch_alpha"])
    monkeypatch.setattr("moectl.training.self_test._N_POINTS", 1)
    with pytest.raises(ModelError, match="gradient on the router is zero"):
        check_auxiliary_gradient(model, ids_BS, ONE["switch_alpha"])


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_detached_logits_are_found_in_any_layer(name, layer, monkeypatch):
    """Layer 1 of the main stack, 2 and 3 of multi-token prediction."""
    model = make_model(DEEPSEEK, mtp=True)
    run_layer = decoder.run_layer

    def detaching(spec, hidden, weights, source, *, on_routing=None, routing_only=False):
        def forget(i, index, routing):
            on_routing(i, index, routing._replace(logits_TE=routing.logits_TE.detach()) if index == layer else routing)

        run_layer(spec, hidden, weights, source, on_routing=forget, routing_only=routing_only)

    monkeypatch.setattr(decoder, "run_layer", detaching)
    with pytest.raises(ModelError, match=rf"layer {layer}: the {NAMES[name]} .*gradient on the router is zero") as caught:
        check_auxiliary_gradient(model, IDS_BS, ONE[name])
    assert caught.value.hint


def test_a_detached_router_is_found_though_its_inputs_have_gradients(monkeypatch):
    model = make_model(MIXTRAL)
    route = decoder.route
    monkeypatch.setattr(decoder, "route", lambda spec, x_TH, weights: route(spec, x_TH, {"router": weights["router"].detach()}))
    with pytest.raises(ModelError, match="layer 0: the z-loss"):
        check_auxiliary_gradient(model, IDS_BS, ONE["z_alpha"])


def test_reentrant_checkpointing_is_found_and_the_other_kind_passes(monkeypatch):
    from torch.utils.checkpoint import checkpoint

    model = make_model(MIXTRAL)
    run_layer = decoder.run_layer

    def checkpointed(reentrant):
        def run(spec, hidden, weights, source, **keys):
            def inside(x_BSH):
                here = [x_BSH]
                run_layer(spec, here, weights, source, **keys)
                return here[0]

            hidden[0] = checkpoint(inside, hidden[0], use_reentrant=reentrant)

        return run

    monkeypatch.setattr(decoder, "run_layer", checkpointed(False))
    check_auxiliary_gradient(model, IDS_BS, ALL)
    monkeypatch.setattr(decoder, "run_layer", checkpointed(True))
    with pytest.raises(ModelError, match="gradient on the router is zero"):
        check_auxiliary_gradient(model, IDS_BS, ALL)


@pytest.mark.parametrize("name", ["switch_alpha", "sequence_alpha"])
def test_a_balance_loss_of_a_layer_that_runs_every_expert_is_constant(name):
    model = make_model(MIXTRAL, num_experts_per_tok=6)
    check_auxiliary_gradient(model, IDS_BS, ONE["z_alpha"])
    with pytest.raises(ModelError, match=f"layer 0: the {NAMES[name]}"):
        check_auxiliary_gradient(model, IDS_BS, ONE[name])


def test_a_router_that_overflows_is_not_finite():
    model = make_model(MIXTRAL)
    with torch.no_grad():
        router_of(model, 2).fill_(3e38)
    with pytest.raises(ModelError, match="layer 2: the gradient of the z-loss on the router is not finite"):
        check_auxiliary_gradient(model, IDS_BS, ONE["z_alpha"])


def test_frozen_routers_are_passed_over_unless_all_are():
    model = make_model(MIXTRAL)
    router_of(model, 0).requires_grad_(False)
    check_auxiliary_gradient(model, IDS_BS, ALL)
    model.requires_grad_(False)
    with pytest.raises(UsageError, match="the Switch loss and the z-loss can change nothing: no router is trained"):
        check_auxiliary_gradient(model, IDS_BS, BalanceOptions(switch_alpha=0.1, z_alpha=0.1))
