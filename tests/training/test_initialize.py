"""Random weights: the right spread, and the same whatever else the model has."""

from __future__ import annotations

import pytest
import torch
from training_runs import make_model


def test_matrices_are_normal_norms_one_and_biases_zero():
    model = make_model(std=0.05, attention_bias=True)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, 0.0 if "bias" in name else 1.0)), name
        else:
            assert float(parameter.std()) == pytest.approx(0.05, rel=0.2), name
            assert abs(float(parameter.mean())) < 0.02, name
    together = torch.cat([parameter.flatten() for parameter in model.parameters() if parameter.ndim > 1])
    assert float(together.std()) == pytest.approx(0.05, rel=0.02)
    assert float((together / 0.05).pow(4).mean()) == pytest.approx(3, rel=0.1)


def test_no_two_tensors_are_alike_and_seeds_differ():
    matrices = [parameter.flatten()[:8] for seed in (0, 1) for parameter in make_model(seed=seed).parameters() if parameter.ndim > 1]
    assert len({tuple(matrix.tolist()) for matrix in matrices}) == len(matrices)


def test_a_tensor_depends_on_its_name_and_the_seed_alone():
    torch.manual_seed(1)
    small = make_model(mtp=False).state_dict()
    torch.manual_seed(2)
    large = make_model(num_hidden_layers=4, num_nextn_predict_layers=0).state_dict()
    assert small.keys() < large.keys()
    assert all(torch.equal(small[name], large[name]) for name in small)


def test_the_dtype_is_the_one_asked_for_but_where_float32_is_kept():
    for name, parameter in make_model(dtype=torch.bfloat16).named_parameters():
        assert parameter.dtype == (torch.float32 if "correction_bias" in name else torch.bfloat16), name
