"""The model inside the package: what it must be, whatever Python runs it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moectl.api import load_model
from moectl.checkpoint.locate import locate
from moectl.data.batching import micro_batches
from moectl.data.demo import DOMAINS
from moectl.data.packing import load_domains
from moectl.data.tokenizer import load_tokenizer
from moectl.model.load import open_checkpoint
from moectl.training.evaluate import evaluate, mean_loss

FOLDER = locate("demo").folder


@pytest.fixture(scope="module")
def heldout():
    return load_domains(["demo"], folder=FOLDER, vocab_size=2048, seq_len=512, tokens=2048)


def test_the_file_is_small_bfloat16_and_complete():
    assert (FOLDER / "model.safetensors").stat().st_size <= 10_000_000
    with open_checkpoint("demo", mtp=True) as checkpoint:
        tensors = checkpoint.index.tensors
        kept = {name for name, info in tensors.items() if info.dtype == "F32"}
        assert {info.dtype for info in tensors.values()} == {"BF16", "F32"}
        assert kept
        assert all(name.endswith("e_score_correction_bias") for name in kept)
        spec = checkpoint.spec
        assert (len(spec.layers), len(spec.moe_layers), spec.n_mtp_layers) == (7, 6, 1)
        for copy, original in (("embed_tokens", "model.embed_tokens"), ("shared_head.head", "lm_head")):
            assert torch.equal(checkpoint.reader.read(f"model.layers.7.{copy}.weight"), checkpoint.reader.read(f"{original}.weight"))


def test_biases_were_balanced_without_drift():
    with open_checkpoint("demo") as checkpoint:
        biases = [checkpoint.reader.read(layer.tensors["correction_bias"].name) for layer in checkpoint.spec.moe_layers]
    assert all(float(bias_E.abs().max()) > 0.01 for bias_E in biases)
    assert all(abs(float(bias_E.mean())) < 1e-5 for bias_E in biases)


def test_transformers_computes_the_same_logits(heldout):
    ids_BS = torch.from_numpy(np.stack([domain.token_ids[:128] for domain in heldout]).astype(np.int64))
    oracle = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    with torch.no_grad():
        theirs, ours = oracle(ids_BS).logits, load_model("demo")(ids_BS)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-5


def test_transformers_reads_the_tokenizer():
    text = "def f(x):\n    return x + 137  # naïve\n"
    theirs = AutoTokenizer.from_pretrained(FOLDER)
    ours = load_tokenizer(FOLDER)
    assert [*theirs(text)["input_ids"], 0] == ours.encode_document(text)
    assert theirs.decode(theirs(text)["input_ids"]) == text


def test_it_learned_every_domain(heldout):
    losses = evaluate(load_model("demo"), micro_batches(heldout, 4096), DOMAINS)
    # An even guess is ln 2048 = 7.62 nats, a unigram model 5.7 in the mean.
    assert mean_loss(losses) < 2.6
    assert max(item.loss for item in losses.values()) < 4.2


def test_its_modules_for_tokens_ahead_learned_too(heldout):
    model = load_model("demo", mtp=True)
    ids_BS = torch.from_numpy(heldout[DOMAINS.index("code")].token_ids[None, :512].astype(np.int64))
    with torch.no_grad():
        ahead_BSH = model.predict_ahead(0, model.hidden(ids_BS), torch.roll(ids_BS, -1, dims=1))
        logits_SV = (ahead_BSH @ model.head.T)[0, :-2]
    assert float(torch.nn.functional.cross_entropy(logits_SV, ids_BS[0, 2:])) < 5.0


def test_route_stats_on_the_built_in_model_and_data(moectl):
    run = moectl("route-stats", "demo", "--tokens", "2k", "--format", "json")
    assert run.code == 0, run.err
    summary = json.loads(run.out)
    assert summary["model"]["name"] == "demo"
    assert list(summary["data"]) == list(DOMAINS)
    assert [row["layer"] for row in summary["layers"]] == [1, 2, 3, 4, 5, 6]
    # Balanced, and no expert dead.
    assert summary["overall"]["max_vio"]["max"] < 1.0
    assert summary["overall"]["dead_experts"]["max"] == 0
