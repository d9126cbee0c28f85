"""Where many parameters lie in one tensor of a checkpoint, each is trained, kept and resumed on its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle_cases import CASES
from oracle_models import make_oracle, save
from training_runs import VOCAB_SIZE, files_of, make_job, make_options

from moectl.api import load_model
from moectl.arch.registry import build_spec
from moectl.model.decoder import Model
from moectl.model.save import named_weights
from moectl.plan import Silence
from moectl.training.initialize import RandomWeights
from moectl.training.loop import train

GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss", "vocab_size": VOCAB_SIZE, "hidden_size": 24, "intermediate_size": 10, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "num_local_experts": 4, "num_experts_per_tok": 2,
    "sliding_window": 5, "torch_dtype": "float32",
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_no_two_weights_share_a_name(case: str, tmp_path: Path) -> None:
    folder = save(make_oracle(*CASES[case]), tmp_path, hub_style=True)
    model = load_model(folder)
    named = named_weights(model, build_spec(json.loads((folder / "config.json").read_text())))
    assert len({ref.part_name for ref, _ in named}) == len(named) == len(list(model.parameters()))


def test_a_run_trains_and_resumes_every_part(tmp_path: Path) -> None:
    def initial() -> Model:
        spec = build_spec(GPT_OSS)
        return Model(spec, RandomWeights(spec, std=0.1, seed=0))

    job = make_job(tmp_path, make_options(steps=4, save_every=2), config=GPT_OSS, initial=initial)
    last = train(job, resume=False, progress=Silence())
    before, after = initial().state_dict(), load_model(last).state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    expected = files_of(last)
    shutil.rmtree(last)
    assert files_of(train(job, resume=True, progress=Silence())) == expected
