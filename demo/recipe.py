"""The recipe of the demo model: its configuration, its tokenizer, how it is trained. `train.py` carries it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from moectl.data import demo
from moectl.training.balance import BalanceOptions
from moectl.training.options import TrainOptions

END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 2048
SEQ_LEN = 512

# DeepSeek-V3 in small (arXiv 2412.19437): every part of it, and each part as small as it can be and still do its work.
MOE_CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 160,
    "intermediate_size": 240,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 7,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "rope_interleave": True,
    "max_position_embeddings": SEQ_LEN,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "use_cache": True,
    "torch_dtype": "bfloat16",
}
# The dense twin: the same, every layer with one feed-forward block as wide as what a token of the MoE meets (4 routed + 1 shared experts).
DENSE_CONFIG: dict[str, Any] = {**MOE_CONFIG, "first_k_dense_replace": MOE_CONFIG["num_hidden_layers"], "num_nextn_predict_layers": 0}

# Sequences of each domain: not by size, or the tables would crowd out the prose.
WEIGHTS = {"code": 3.0, "prose": 2.5, "tables": 1.5, "arithmetic": 1.0, "bytecode": 1.5}


def train_options(steps: int) -> TrainOptions:
    """Balance comes from the correction bias alone: no auxiliary loss."""
    return TrainOptions(
        steps=steps,
        seq_len=SEQ_LEN,
        batch_tokens=8 * SEQ_LEN,
        lr=3e-3,
        min_lr=1e-4,
        schedule="cosine",
        warmup_steps=min(100, steps // 10),
        weight_decay=0.1,
        balance=BalanceOptions(bias_gamma=1e-3, bias_gamma_schedule="constant", bias_freeze_fraction=0.034),
        save_every=250,
        eval_every=250,
        log_every=10,
        seed=0,
    )


def train_tokenizer(folder: Path, *, bytes_per_domain: int = 1_500_000) -> None:
    """A byte-level BPE of VOCAB_SIZE tokens from the training split, digits apart, into `folder`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(bytes_per_domain), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT, "model_max_length": SEQ_LEN, "add_bos_token": False}
    for name, value in (("tokenizer_config.json", settings), ("generation_config.json", {"eos_token_id": 0, "do_sample": False})):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _sample(bytes_per_domain: int):  # type: ignore[no-untyped-def]
    for domain in demo.DOMAINS:
        left = bytes_per_domain
        for text in demo.documents(domain, "train"):
            yield text
            left -= len(text)
            if left <= 0:
                break
