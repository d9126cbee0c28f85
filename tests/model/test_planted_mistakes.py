"""Plausible mistakes, planted one at a time into a copy of the package: the oracle tests must catch each of them.

A mistake is a text that occurs exactly once in a module, what to put in its place, and the configurations that should notice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import moectl

PACKAGE = Path(moectl.__file__).parent
TESTS = Path(__file__).parents[1]
ORACLE = Path(__file__).with_name("test_oracle.py")

MISTAKES: dict[str, tuple[str, str, str, str]] = {
    "the attention's norm before the feed-forward block": (
        "model/decoder.py", 'normalize(layer.norm, x_BSH, weights, "ffn_norm")', 'normalize(layer.norm, x_BSH, weights, "attention_norm")',
        "llama",
    ),
    "no residual multiplier": (
        "model/decoder.py", "x_BSH + (update_BSH * layer.residual_scale if layer.residual_scale != 1.0 else update_BSH)",
        "x_BSH + update_BSH", "granitemoe",
    ),
    "no norm behind a block": ("model/decoder.py", "if layer.out_norms:", "if False:", "gemma2"),
    "the shared expert ungated": (
        "model/decoder.py", 'torch.sigmoid(F.linear(x_TH, weights["shared_expert_gate"])) * out_TH if ffn.gated_shared else out_TH',
        "out_TH", "qwen2_moe",
    ),
    "no shared expert": ("model/decoder.py", "out_TH = out_TH + _shared(layer.ffn, item.x_TH, weights)", "pass", "deepseek_v3"),
    "weights not normalised": ("model/router.py", "if spec.renormalizes:", "if False:", "mixtral"),
    "weights from the biased scores": ("model/router.py", "scores_TE.gather(1, ids_TK)", "choice_TE.gather(1, ids_TK)", "deepseek_v3"),
    "no correction bias": ("model/router.py", "if spec.correction_bias:\n        choice_TE", "if False:\n        choice_TE", "glm4_moe"),
    "a group is as good as its best": ("model/router.py", "topk(2, dim=-1)", "topk(1, dim=-1)", "deepseek_v3-groups"),
    "a group is as good as its two best": ("model/router.py", 'if spec.group_score == "max"', "if False", "deepseek_v2-best"),
    "no groups": ("model/router.py", "if spec.n_group > 1:\n        choice_TE", "if False:\n        choice_TE", "deepseek_v3-groups"),
    "no routing scale": ("model/router.py", "if spec.scale != 1.0:", "if False:", "deepseek_v3-groups"),
    "softmax over all instead of the selected": (
        "model/router.py", "values_TK.softmax(-1, dtype=_score_dtype(spec, logits_TE))", "logits_TE.softmax(-1).gather(1, ids_TK)",
        "granitemoe",
    ),
    "half the jitter": ("model/router.py", "> 2 * spec.jitter", "> spec.jitter", "phimoe"),
    "no router bias": ("model/router.py", "if spec.bias else None", "if False else None", "gpt_oss"),
    "a floor of one under the sum of weights": (
        "model/router.py", "sums_T1.clamp(min=spec.renormalize_floor)", "sums_T1.clamp(min=1.0)", "ernie4_5_moe",
    ),
    "weights on the output": (
        "model/decoder.py", "weighs_input=layer.ffn.router.weighs_input", "weighs_input=False", "llama4_text",
    ),
    "interleaved pairs read as halves": ("model/rope.py", 'if layout == "interleaved"', "if False", "deepseek_v3"),
    "no attention factor": ("model/rope.py", "angles.cos() * factor, angles.sin() * factor", "angles.cos(), angles.sin()", "llama-yarn"),
    "low and high frequencies exchanged": (
        "model/rope.py", "wavelength > rope.original_max_positions / rope.low", "wavelength > rope.original_max_positions / rope.high",
        "llama3",
    ),
    "always the short factors": (
        "model/rope.py", "rope.long_factors if n_positions > rope.original_max_positions else rope.short_factors", "rope.short_factors",
        "phi3",
    ),
    "the whole head rotates": ("arch/rope.py", "dim = int(head_dim * share)", "dim = head_dim", "glm4_moe"),
    "a window that does not count the token itself": (
        "model/causal.py", "attn_mask=(back >= 0) & (back < window)", "attn_mask=(back >= 0) & (back <= window)", "mixtral-window",
    ),
    "chunks twice as long": ("model/causal.py", "torch.split(x, chunk, dim=2)", "torch.split(x, 2 * chunk, dim=2)", "llama4_text"),
    "queries and keys normed before the rotation": (
        "model/attention.py", "if per_head is not None and not per_head.after_rope:", "if per_head is not None:", "hunyuan",
    ),
    "no clip of the values": ("model/attention.py", "v_BSX = v_BSX.clamp(-spec.clip, spec.clip)", "pass", "olmoe"),
    "no query temperature": ("model/attention.py", "if spec.temperature is not None:", "if False:", "llama4_text"),
    "no sinks": ("model/attention.py", "if spec.sinks:", "if False:", "gpt_oss"),
    "no softcap of the scores": ("model/attention.py", "elif spec.softcap is not None:", "elif False:", "gemma2"),
    "no biases": ("model/projection.py", 'weights.get(f"{slot}_bias")', "None", "qwen2-"),
    "no softcap of the logits": ("model/ends.py", "logits if head.softcap is None else", "logits if True else", "gemma2"),
    "no divisor of the logits": ("model/ends.py", "if head.divisor != 1.0:", "if False:", "granitemoe"),
    "embeddings unscaled": ("model/ends.py", "if embedding.scale == 1.0:", "if True:", "gemma3"),
    "weights not zero-centred": ("model/norm.py", "(1.0 + weight.float())", "weight.float()", "gemma2"),
    "eps outside the root": (
        "model/norm.py", "torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)",
        "(1 / (x32.square().mean(-1, keepdim=True).sqrt() + eps))", "llama-gqa",
    ),
    "the model's eps in the low-rank norms": ("arch/latent.py", "_LORA_NORM_EPS = 1e-6", "_LORA_NORM_EPS = 1e-3", "deepseek_v3-groups"),
    "gate and up exchanged in stacked experts": (
        "arch/blocks.py", "rows=(0, width)", "rows=(width, 2 * width)", "qwen3_moe",
    ),
}  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_oracle_notices(mistake: str, tmp_path: Path) -> None:
    module, right, wrong, cases = MISTAKES[mistake]
    shutil.copytree(PACKAGE, tmp_path / "moectl", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "moectl" / module
    text = path.read_text()
    assert text.count(right) == 1, "the module has changed: plant the mistake anew"

    path.write_text(text.replace(right, wrong))
    # -P: the package in the working directory must not come first.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(ORACLE), "-k", cases]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    found = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 1, f"not caught by the tests of {cases}:\n{found.stdout[-2000:]}{found.stderr[-2000:]}"
    assert " failed" in found.stdout or "FAILED" in found.stdout
