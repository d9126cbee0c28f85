"""What files on the Hub carry, family by family, where newer transformers writes other keys: functions that rewrite a `config.json`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Keys = dict[str, Any]


def _qwen2_moe(config: Keys) -> None:
    """No `layer_types` where they follow from the other keys, and a window that is announced though switched off."""
    slides, first_full = config["use_sliding_window"], config["max_window_layers"]
    n_layers = config["num_hidden_layers"]
    rule = ["sliding_attention" if slides and i % 2 == 0 and i < first_full else "full_attention" for i in range(n_layers)]
    if config["layer_types"] == rule:
        config.pop("layer_types")
    if not slides:
        config["sliding_window"] = 32768
    for key, usual in (("qkv_bias", True), ("mlp_only_layers", [])):
        if config[key] == usual:
            config.pop(key)


def _hunyuan_v1_moe(config: Keys) -> None:
    """Tencent's own keys, with a list where a layer could differ."""
    n_layers = config["num_hidden_layers"]
    config["attention_head_dim"] = config.pop("head_dim")
    if isinstance(config["moe_topk"], int):
        config["moe_topk"] = [config["moe_topk"]] * n_layers
    config["num_shared_expert"] = [1] * n_layers
    config["moe_intermediate_size"] = [config["intermediate_size"]] * n_layers
    config |= {"use_mixed_mlp_moe": True, "use_qk_norm": True, "use_cla": False, "moe_layer_num_skipped": 0, "mlp_bias": False}
    if (config["rope_scaling"] or {}).get("alpha"):
        config["rope_scaling"] |= {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}


def _llama4_text(config: Keys) -> None:
    """Without the lists that follow from `no_rope_layer_interval` and `interleave_moe_layer_step`; a switch that is a number."""
    n_layers, step = config["num_hidden_layers"], config["interleave_moe_layer_step"]
    rotates = [(i + 1) % config["no_rope_layer_interval"] != 0 for i in range(n_layers)]
    if config["moe_layers"] == list(range(step - 1, n_layers, step)):
        config.pop("moe_layers")
    if config["no_rope_layers"] == [int(yes) for yes in rotates]:
        config["no_rope_layers"] = []
    if config["layer_types"] == ["chunked_attention" if yes else "full_attention" for yes in rotates]:
        config.pop("layer_types")
    config["attn_temperature_tuning"] = 4 if config["attn_temperature_tuning"] else 0


def _dense_qwen(config: Keys) -> None:
    """As `_qwen2_moe`, but another rule; the window that is switched off is one that would be noticed."""
    slides, first = config["use_sliding_window"], config["max_window_layers"]
    rule = ["sliding_attention" if slides and i >= first else "full_attention" for i in range(config["num_hidden_layers"])]
    if config["layer_types"] == rule:
        config.pop("layer_types")
    if not slides:
        config["sliding_window"] = 4


def _phi3(config: Keys) -> None:
    """The original length stands beside the factors; some early files say `su`, some `yarn`."""
    if config["rope_scaling"]:
        config["rope_scaling"].pop("original_max_position_embeddings")
        config["rope_scaling"]["type"] = "su" if config["tie_word_embeddings"] else "yarn"


def _gemma2(config: Keys) -> None:
    """The activation twice, the first time under the key that plays no part."""
    config["hidden_act"] = "silu"
    if config["layer_types"] == ["full_attention" if i % 2 else "sliding_attention" for i in range(config["num_hidden_layers"])]:
        config.pop("layer_types")


def _gemma3_text(config: Keys) -> None:
    """A number in place of the list of layer types, and nothing that is the default."""
    pattern = config.pop("_sliding_window_pattern")
    rule = ["sliding_attention" if i % pattern else "full_attention" for i in range(1, config["num_hidden_layers"] + 1)]
    if config["layer_types"] == rule:
        config.pop("layer_types")
        if pattern != 6:
            config["sliding_window_pattern"] = pattern
    usual = {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "use_bidirectional_attention": False}
    for key, value in usual.items():
        if config[key] == value:
            config.pop(key)


def _deepseek(config: Keys) -> None:
    """The keys of the training code."""
    config |= {"aux_loss_alpha": 0.001, "seq_aux": True, "pretraining_tp": 1}


def _deepseek_v2(config: Keys) -> None:
    """The keys of DeepSeek's own code, groups that play no part included."""
    for key in ("head_dim", "qk_head_dim"):
        config.pop(key)
    if config["topk_method"] == "greedy":
        config |= {"n_group": 1, "topk_group": 1}
    config |= {"scoring_func": "softmax", "moe_layer_freq": 1, "aux_loss_alpha": 0.001, "seq_aux": True}


def _dots1(config: Keys) -> None:
    """The score named like the method, groups that are null, and no list that follows from another key."""
    rule = [i >= config["max_window_layers"] for i in range(config["num_hidden_layers"])]
    if config["layer_types"] == ["sliding_attention" if slides else "full_attention" for slides in rule]:
        config.pop("layer_types")
    if config["n_group"] == 1:
        config |= {"n_group": None, "topk_group": None}
    config |= {"scoring_func": "noaux_tc", "moe_layer_freq": 1}


def _ernie4_5_moe(config: Keys) -> None:
    """-1 for the last layer, the head tied by default, and what Baidu's training code leaves behind."""
    if config["moe_layer_end_index"] == config["num_hidden_layers"] - 1:
        config["moe_layer_end_index"] = -1
    if config["tie_word_embeddings"]:
        config.pop("tie_word_embeddings")
    config |= {"moe_capacity": [64, 64, 64], "moe_gate": "topk", "moe_use_aux_free": True}


def _minimax_m2(config: Keys) -> None:
    """`rotary_dim`, and the switches of MiniMax's own code. Prediction layers are announced though no file holds them."""
    config["rotary_dim"] = round(config["head_dim"] * config.pop("partial_rotary_factor", 1.0))
    config |= {"scoring_func": "sigmoid", "use_routing_bias": True, "use_qk_norm": True, "qk_norm_type": "per_layer"}
    config |= {"use_mtp": True, "num_mtp_modules": 3, "mtp_transformer_layers": 1, "shared_intermediate_size": 0}
    config["attn_type_list"] = [1] * config["num_hidden_layers"]


def _bailing_moe_v2(config: Keys) -> None:
    """The model type of the first generation; the share that rotates said by another key in one of the sizes."""
    config["model_type"] = "bailing_moe"
    config["rotary_dim"] = round(config["head_dim"] * config.pop("partial_rotary_factor", 1.0))
    config |= {"score_function": "sigmoid", "router_dtype": "fp32", "moe_router_enable_expert_bias": True, "embedding_dropout": 0.0}


HUB_STYLES: dict[str, Callable[[Keys], None]] = {
    "bailing_moe_v2": _bailing_moe_v2,
    "deepseek": _deepseek,
    "deepseek_v2": _deepseek_v2,
    "dots1": _dots1,
    "ernie4_5_moe": _ernie4_5_moe,
    "minimax_m2": _minimax_m2,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3_text,
    "hunyuan_v1_moe": _hunyuan_v1_moe,
    "phi3": _phi3,
    "qwen2": _dense_qwen,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _dense_qwen,
}
