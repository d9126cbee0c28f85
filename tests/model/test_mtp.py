"""Multi-token-prediction layers against transformers, and what happens where files lack them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle_cases import CASES
from oracle_models import make_oracle, run_oracle, save
from safetensors.torch import load_file, save_file
from tiny_checkpoints import set_config
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from moectl.api import load_model
from moectl.arch import counts
from moectl.arch.parts import MoE
from moectl.arch.registry import build_spec
from moectl.checkpoint.locate import locate, read_config
from moectl.errors import DataError, ModelError, UsageError
from moectl.model.load import open_checkpoint

L, DEPTH, S = 3, 2, 16
IDS = torch.randint(0, 103, (2, S + DEPTH + 1), generator=torch.Generator().manual_seed(7))
MTP_CASES = {
    "groups-yarn-biases": CASES["deepseek_v3-groups-yarn-biases"],
    "plain-tied": CASES["deepseek_v3-plain-q-unnormed-tied"],
    "dense": ("deepseek_v3", {**CASES["deepseek_v3-groups-yarn-biases"][1], "first_k_dense_replace": L}),
    "glm-groups-qk-norm-biases-yarn": CASES["glm4_moe-groups-qk-norm-biases-yarn"],
    "glm-tied": CASES["glm4_moe-unnormed-tied"],
}
Tensors = dict[str, torch.Tensor]


def make_mtp(case: str) -> tuple[Any, Any]:
    """A random main model of transformers and its random MTP layers, in evaluation mode."""
    family, keys = MTP_CASES[case]
    main = make_oracle(family, {**keys, "num_nextn_predict_layers": DEPTH})
    mtp = MtpModel(main, DEPTH).float().eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, tensor in mtp.layers.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name:
                tensor.copy_(1 + 0.3 * noise)
            else:
                tensor.copy_(0.2 * noise if tensor.ndim == 1 else noise * (1.5 / tensor.shape[-1] ** 0.5))
    return main, mtp


def hub_tensors(main: Any, mtp: Any) -> Tensors:
    """The MTP layers under the names that DeepSeek's own files use, copies of embedding and head included."""
    tensors: Tensors = {}
    for name, tensor in mtp.layers.state_dict().items():
        n, _, rest = name.partition(".")
        prefix = f"model.layers.{L + int(n)}"
        rest = rest.replace("mtp_block.", "").replace("post_norm", "shared_head.norm")
        if rest.endswith("experts.gate_up_proj"):
            for e, both in enumerate(tensor):
                gate, up = both.chunk(2)
                tensors[f"{prefix}.mlp.experts.{e}.gate_proj.weight"] = gate
                tensors[f"{prefix}.mlp.experts.{e}.up_proj.weight"] = up
        elif rest.endswith("experts.down_proj"):
            tensors |= {f"{prefix}.mlp.experts.{e}.down_proj.weight": down for e, down in enumerate(tensor)}
        else:
            tensors[f"{prefix}.{rest}"] = tensor
        tensors[f"{prefix}.embed_tokens.weight"] = main.model.embed_tokens.weight
        tensors[f"{prefix}.shared_head.head.weight"] = main.lm_head.weight
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def write(main: Any, tensors: Tensors, folder: Path) -> Path:
    """One file without an index: the main model's tensors and these."""
    save(main, folder, hub_style=True, shard="1GB")
    (file,) = folder.glob("*.safetensors")
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})
    set_config(folder, num_nextn_predict_layers=DEPTH)
    return folder


def run_mtp_oracle(main: Any, mtp: Any, ids_BS: torch.Tensor) -> list[torch.Tensor]:
    """Normed hidden states of each MTP layer, fed with the true tokens."""
    h_BSH, out = main.model(ids_BS[:, :S], use_cache=False).last_hidden_state, []
    for n in range(DEPTH):
        positions_1S = torch.arange(n + 1, n + 1 + S)[None]
        h_BSH = mtp.forward_layer(n, h_BSH, positions_1S, MtpCache(config=mtp.config), input_ids=ids_BS[:, n + 1 : n + 1 + S])
        out.append(h_BSH)
    return out


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("case", MTP_CASES)
def test_equals_the_oracle_and_leaves_the_main_model_alone(case: str, tmp_path: Path) -> None:
    main, mtp = make_mtp(case)
    folder = write(main, hub_tensors(main, mtp), tmp_path)
    model, plain = load_model(folder, mtp=True), load_model(folder)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not [name for name in plain.state_dict() if name.startswith("mtp")]
    # Experts here do not depend on experts in the main stack.
    assert isinstance(model.spec.mtp[1].layer.ffn, MoE)
    assert bool(model.spec.moe_layers) == (case != "dense")

    layers: list[int] = []
    with torch.no_grad():
        expected = run_mtp_oracle(main, mtp, IDS)
        assert torch.equal(model(IDS), plain(IDS))
        assert relative(model(IDS), run_oracle(main, IDS).logits_BSV) <= 1e-5
        h_BSH = model.hidden(IDS[:, :S])
        for n in range(DEPTH):
            h_BSH = model.predict_ahead(n, h_BSH, IDS[:, n + 1 : n + 1 + S], on_routing=lambda _i, layer, _routing: layers.append(layer))
            assert relative(h_BSH, expected[n]) <= 1e-5
            assert relative(h_BSH @ model.head.T, mtp.shared_head(expected[n])) <= 1e-5
    assert layers == [L, L + 1]


def test_gradients_reach_every_parameter_with_the_oracles_value(tmp_path: Path) -> None:
    main, mtp = make_mtp("groups-yarn-biases")
    model = load_model(write(main, hub_tensors(main, mtp), tmp_path), mtp=True).requires_grad_(True)
    h_BSH = model.hidden(IDS[:, :S])
    for n in range(DEPTH):
        h_BSH = model.predict_ahead(n, h_BSH, IDS[:, n + 1 : n + 1 + S])
    (h_BSH @ model.head.T).square().mean().backward()
    mtp.requires_grad_(True)
    mtp.shared_head(run_mtp_oracle(main, mtp, IDS)[-1]).square().mean().backward()

    untouched = {name for name, parameter in model.mtp.named_parameters() if parameter.grad is None}
    # The correction bias only selects; an expert that no token chose takes no part.
    assert all("correction_bias" in name or "experts" in name for name in untouched)
    for n in range(DEPTH):
        theirs = dict(mtp.layers[n].named_parameters())
        ours, block = model.mtp[n].weights, model.mtp[n].block
        pairs = {
            "enorm.weight": ours["enorm"],
            "hnorm.weight": ours["hnorm"],
            "eh_proj.weight": ours["eh_proj"],
            "post_norm.weight": ours["norm"],
            "mtp_block.mlp.gate.weight": block.weights["router"],
            "mtp_block.self_attn.kv_b_proj.weight": block.weights["kv_b"],
        }
        for name, parameter in pairs.items():
            assert relative(parameter.grad, theirs[name].grad) <= 1e-4, name
        used = [e for e, down in enumerate(block.experts.down) if down.grad is not None]
        assert used
        for e in used:
            assert torch.allclose(block.experts.down[e].grad, theirs["mtp_block.mlp.experts.down_proj"].grad[e], rtol=1e-3, atol=1e-7)


def test_copies_of_embedding_and_head_may_be_absent_and_are_not_read(tmp_path: Path) -> None:
    main, mtp = make_mtp("plain-tied")
    tensors = hub_tensors(main, mtp)
    copies = [name for name in tensors if name.endswith(("embed_tokens.weight", "shared_head.head.weight"))]
    assert len(copies) == 2 * DEPTH
    states = []
    for folder, kept in (
        (tmp_path / "with", tensors | {name: torch.full_like(tensors[name], torch.nan) for name in copies}),
        (tmp_path / "without", {name: tensor for name, tensor in tensors.items() if name not in copies}),
    ):
        model = load_model(write(main, kept, folder), mtp=True)
        states.append(model.predict_ahead(0, model.hidden(IDS), IDS))
    assert torch.equal(*states)


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(f"model.layers.{L}.{name}")


def put(name: str, *shape: int) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({f"model.layers.{L + 1}.{name}": torch.ones(shape)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Tensors.clear, r"lacks (\d+) of \1 tensors of its multi-token-prediction layers: model.layers.3.enorm.weight"),
        (drop("eh_proj.weight"), r"lacks 1 of \d+ tensors of its multi-.* layers: model.layers.3.eh_proj.weight"),
        (drop("mlp.experts.5.up_proj.weight"), r"lacks 1 of .*: model.layers.3.mlp.experts.5.up_proj.weight"),
        (put("hnorm.weight", 47), r"1 tensors have another shape .* model.layers.4.hnorm.weight is \[47\] instead of \[48\]"),
        (put("eh_proj.weight", 96, 48), r"eh_proj.weight is \[96, 48\] instead of \[48, 96\]"),
        (put("embed_tokens.weight", 3, 48), r"embed_tokens.weight is \[3, 48\] instead of \[103, 48\]"),
        (put("eh_proj.bias", 48), r"holds 1 tensors .* no place for: model.layers.4.eh_proj.bias"),
    ],
    ids=["none", "no-eh_proj", "no-expert", "hnorm", "eh_proj-transposed", "embedding-copy", "surplus"],
)
def test_what_is_missing_or_wrong_is_named_only_when_asked_for(change: Callable[[Tensors], object], message: str, tmp_path: Path) -> None:
    main, mtp = make_mtp("groups-yarn-biases")
    tensors = hub_tensors(main, mtp)
    change(tensors)
    folder = write(main, tensors, tmp_path)
    load_model(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder, mtp=True)
    assert caught.value.hint


def test_asking_for_layers_that_are_not_there(tmp_path: Path) -> None:
    main, mtp = make_mtp("plain-tied")
    folder = write(main, hub_tensors(main, mtp), tmp_path / "deepseek")
    plain, model = load_model(folder), load_model(folder, mtp=True)
    h_BSH = model.hidden(IDS)
    with pytest.raises(UsageError, match="layer 0 is not loaded; this model has 0 of 2"):
        plain.predict_ahead(0, h_BSH, IDS)
    with pytest.raises(UsageError, match="layer 2 is not loaded; this model has 2 of 2"):
        model.predict_ahead(2, h_BSH, IDS)
    with pytest.raises(DataError, match="token id `103` is outside the vocabulary"):
        model.predict_ahead(0, h_BSH, IDS.clamp(min=103))
    llama = save(make_oracle("llama", CASES["llama-yarn"][1]), tmp_path / "llama", hub_style=True)
    with pytest.raises(ModelError, match="announces no multi-token-prediction layers"):
        load_model(llama, mtp=True)


def test_the_spec_lists_them_and_the_main_counts_do_not(tmp_path: Path) -> None:
    main, mtp = make_mtp("groups-yarn-biases")
    folder = write(main, hub_tensors(main, mtp), tmp_path)
    config = read_config(locate(str(folder)))
    with open_checkpoint(str(folder), mtp=True) as checkpoint:
        spec = checkpoint.spec
    without = build_spec({**config, "num_nextn_predict_layers": 0})
    assert (spec.n_mtp_layers, without.n_mtp_layers) == (DEPTH, 0)
    assert [spec.layer(i).index for i in range(L + DEPTH)] == list(range(L + DEPTH))
    assert [layer.index for layer in spec.moe_layers] == [1, 2]
    assert counts.count_parameters(spec) == counts.count_parameters(without)
    assert list(spec.refs()) == list(without.refs())
    assert sum(ref.numel for ref in spec.mtp_refs()) == sum(tensor.numel() for tensor in mtp.layers.state_dict().values())
