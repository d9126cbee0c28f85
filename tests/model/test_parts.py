"""Every fast path of the decoder against its obvious version, and the rotary formulas against their published values."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from moectl.arch.parts import Activation, GroupedQueryAttention, Norm, Rope, Router
from moectl.arch.registry import build_spec
from moectl.arch.tensors import TensorRef
from moectl.checkpoint.index import open_index
from moectl.checkpoint.reader import TensorReader
from moectl.errors import ModelError
from moectl.model import causal, experts, router, weights
from moectl.model.experts import ExpertWeights, MoEInput
from moectl.model.norm import normalize, rms_norm
from moectl.model.rope import inverse_frequencies, rope_tables, rotate

LLAMA = {"model_type": "llama", "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 2}


class Table:
    """An ExpertSource over a list; counts how often each expert is fetched."""

    def __init__(self, n_experts: int, hidden: int, width: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.experts = [
            ExpertWeights(*(torch.randn(shape, generator=g) for shape in ((width, hidden), (width, hidden), (hidden, width))))
            for _ in range(n_experts)
        ]
        self.fetched: list[int] = []

    def get(self, layer: int, expert: int) -> ExpertWeights:
        self.fetched.append(expert)
        return self.experts[expert]


@settings(max_examples=30, deadline=None)
@given(n_experts=st.integers(1, 7), top_k=st.integers(1, 7), n_tokens=st.integers(1, 9), seed=st.integers(0, 99), dropped=st.booleans())
def test_sorted_dispatch_equals_the_obvious_loop(n_experts: int, top_k: int, n_tokens: int, seed: int, dropped: bool) -> None:
    top_k = min(top_k, n_experts)
    g = torch.Generator().manual_seed(seed)
    ids_TK = torch.stack([torch.randperm(n_experts, generator=g)[:top_k] for _ in range(n_tokens)])
    if dropped:
        ids_TK[torch.rand(ids_TK.shape, generator=g) < 0.3] = -1
    x_TH, weights_TK = torch.randn(n_tokens, 6, generator=g), torch.rand(n_tokens, top_k, generator=g)
    source = Table(n_experts, 6, 5, seed)
    item = MoEInput(x_TH, experts.dispatch(ids_TK, weights_TK), torch.zeros(n_tokens, 6))
    experts.run_experts(0, [item], source, act=Activation())
    assert source.fetched == sorted(set(ids_TK[ids_TK >= 0].tolist()))
    expected = experts.run_experts_reference(0, x_TH, ids_TK, weights_TK, source, act=Activation())
    torch.testing.assert_close(item.out_TH, expected, rtol=1e-4, atol=1e-4)


def test_micro_batches_together_have_the_bits_of_micro_batches_alone() -> None:
    g = torch.Generator().manual_seed(1)
    source = Table(9, 33, 17, seed=2)
    ids = [torch.stack([torch.randperm(9, generator=g)[:3] for _ in range(n)]) for n in (40, 7, 23)]
    xs, ws = [torch.randn(len(i), 33, generator=g) for i in ids], [torch.rand(i.shape, generator=g) for i in ids]

    def items() -> list[MoEInput]:
        return [MoEInput(x, experts.dispatch(i, w), torch.zeros_like(x)) for x, i, w in zip(xs, ids, ws, strict=True)]

    together, alone = items(), items()
    source.fetched.clear()
    experts.run_experts(0, together, source, act=Activation())
    assert source.fetched == list(range(9))
    for item in alone:
        experts.run_experts(0, [item], source, act=Activation())
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a.out_TH, b.out_TH)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    score=st.sampled_from(["softmax", "sigmoid"]),
    groups=st.sampled_from([(1, 1), (3, 1), (3, 2), (4, 3)]),
    renormalize=st.booleans(),
    bias=st.booleans(),
)
def test_router_equals_the_obvious_loop(seed: int, score: str, groups: tuple[int, int], renormalize: bool, bias: bool) -> None:
    spec = Router(
        n_experts=12, top_k=3, score=score, logits_dtype="float32", weight_dtype="float32", renormalize=renormalize,  # type: ignore[arg-type]
        renormalize_eps=1e-20, correction_bias=bias, scale=2.5, n_group=groups[0], topk_group=groups[1],
    )  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    weights = {"router": torch.randn(12, 8, generator=g), "correction_bias": 0.5 * torch.randn(12, generator=g)}
    x_TH = torch.randn(5, 8, generator=g)
    got = router.route(spec, x_TH, weights)
    for t, expected in enumerate(router.route_reference(spec, x_TH, weights)):
        ours = dict(zip(got.expert_ids_TK[t].tolist(), got.weights_TK[t].tolist(), strict=True))
        assert ours.keys() == expected.keys()
        assert ours == pytest.approx(expected, rel=1e-4)
    assert torch.equal(got.logits_TE, x_TH @ weights["router"].T)


def heads(**keys: object) -> GroupedQueryAttention:
    return GroupedQueryAttention(n_heads=6, n_kv_heads=2, head_dim=6, scale=0.3, rope=None, **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("score_bytes", [2**20, 4 * 11 * 4, 1], ids=["at once", "in blocks", "query by query"])
@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("extra", [{}, {"softcap": 0.5}, {"sinks": True}, {"softcap": 0.5, "sinks": True, "softmax_dtype": "model"}])
def test_attention_equals_the_obvious_loop(
    extra: dict[str, object], window: int | None, score_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal, "_SCORE_BYTES", score_bytes)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 11, 6, generator=g) for n in (6, 2, 2))
    spec = heads(window=window, **extra)
    sinks = torch.randn(6, generator=g) if spec.sinks else None
    got = causal.causal_written_out(spec, q, k, v, sinks) if extra else causal.causal(q, k, v, scale=0.3, window=window)
    torch.testing.assert_close(got, causal.causal_reference(spec, q, k, v, sinks), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("window", [None, 3, 50])
def test_sinks_by_either_path_and_their_gradients(window: int | None, softcap: float | None) -> None:
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=g, requires_grad=True) for shape in ((2, 6, 11, 6), (2, 2, 11, 6), (2, 2, 11, 6), (6,))]
    spec = heads(window=window, softcap=softcap, sinks=True, softmax_dtype="model")
    results = [attend(spec, *inputs) for attend in (causal.causal_with_sinks, causal.causal_written_out, causal.causal_reference)]
    weighing = torch.randn(results[0].shape, generator=g)
    grads = [torch.autograd.grad((result * weighing).sum(), inputs) for result in results]
    for result, grad in zip(results[:2], grads[:2], strict=True):
        torch.testing.assert_close(result, results[2], rtol=1e-5, atol=1e-6)
        for ours, expected in zip(grad, grads[2], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    narrow = [x.detach().bfloat16() for x in inputs]
    assert torch.equal(causal.causal_with_sinks(spec, *narrow), causal.causal_written_out(spec, *narrow))


@pytest.mark.parametrize("window", [None, 1, 9, 130, 700])
def test_keys_left_out_change_no_bits(window: int | None) -> None:
    """In bfloat16 what no query of a block sees is left out in steps that keep the order of sums: as if all were one block."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 900, 16, generator=g).bfloat16() for n in (6, 2, 2))
    sinks = torch.randn(6, generator=g).bfloat16()
    spec = heads(window=window, sinks=True, softmax_dtype="model")
    position = torch.arange(900)
    back = position[:, None] - position
    unseen = (back < 0) | (back >= (window or 900))
    scores = (q @ k.repeat_interleave(3, 1).transpose(-1, -2) * 0.3).masked_fill(unseen, float("-inf"))
    scores = torch.cat((scores, sinks[None, :, None, None].expand(1, 6, 900, 1)), -1)
    expected = (scores - scores.amax(-1, keepdim=True)).softmax(-1)[..., :-1] @ v.repeat_interleave(3, 1)
    assert (causal.causal_written_out(spec, q, k, v, sinks) != expected).float().mean() <= 1e-5


@pytest.mark.parametrize("chunk", [1, 4, 11, 50])
def test_chunks_of_positions_do_not_see_each_other(chunk: int) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 11, 6, generator=g) for n in (6, 2, 2))
    got = causal.causal_in_chunks(q, k, v, scale=0.3, chunk=chunk)
    torch.testing.assert_close(got, causal.causal_reference(heads(chunk=chunk), q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_values(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole or a few heads at a time, the same bits; a few queries of a head at a time, the same to rounding."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 6, 9, d, generator=g).to(dtype) for d in (8, 8, 6))
    whole = causal.causal_narrow_values(q, k, v, scale=0.3)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(whole, causal.causal_reference(heads(), q, k, v), rtol=tolerance, atol=tolerance)
    monkeypatch.setattr(causal, "_SCORE_BYTES", 2 * 4 * 9 * 9)
    assert torch.equal(causal.causal_narrow_values(q, k, v, scale=0.3), whole)
    monkeypatch.setattr(causal, "_SCORE_BYTES", 4 * 4 * 9)
    torch.testing.assert_close(causal.causal_narrow_values(q, k, v, scale=0.3), whole, rtol=tolerance, atol=tolerance)


def test_every_kind_of_norm() -> None:
    """Against its formula in float64, and where bfloat16 is rounded: before the weight, or after."""
    g = torch.Generator().manual_seed(0)
    x, w, b = torch.randn(7, 16, generator=g), torch.randn(16, generator=g), torch.randn(16, generator=g)
    unit = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-3).sqrt()
    centred = x.double() - x.double().mean(-1, keepdim=True)
    expected = {
        "rms": unit * w,
        "rms_float32": unit * w,
        "rms_zero_centred": unit * (1 + w.double()),
        "layer": centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * w + b,
    }
    for kind, value in expected.items():
        got = normalize(Norm(eps=1e-3, kind=kind), x, {"n": w, "n_bias": b}, "n")  # type: ignore[arg-type]
        torch.testing.assert_close(got.double(), value, rtol=1e-5, atol=1e-5)
    x, w = x.bfloat16(), w.bfloat16()
    unit32 = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-3)
    late = normalize(Norm(eps=1e-3, kind="rms_float32"), x, {"n": w}, "n")
    assert torch.equal(late, (unit32 * w.float()).bfloat16())
    assert not torch.equal(late, normalize(Norm(eps=1e-3), x, {"n": w}, "n"))


def test_sparsemixer_equals_its_formula_expert_by_expert() -> None:
    spec = Router(n_experts=9, top_k=2, score="sparsemixer", jitter=0.2, logits_dtype="model", weight_dtype="model", renormalize=False)
    g = torch.Generator().manual_seed(0)
    weights, x_TH = {"router": torch.randn(9, 8, generator=g)}, torch.randn(40, 8, generator=g)
    got = router.route(spec, x_TH, weights)
    for t, z in enumerate((x_TH @ weights["router"].T).tolist()):
        left, expected = dict(enumerate(z)), {}
        for _ in range(2):
            best = max(left, key=lambda e: left[e])
            near = [e for e in left if (left[best] - z[e]) / max(abs(z[e]), left[best]) <= 0.4]
            expected[best] = math.exp(left[best]) / sum(math.exp(z[e]) for e in near)
            del left[best]
        ours = dict(zip(got.expert_ids_TK[t].tolist(), got.weights_TK[t].tolist(), strict=True))
        assert ours == pytest.approx(expected, rel=1e-4)
    assert (got.weights_TK.sum(1) > 1).any()


def test_rms_norm_rounds_before_the_weight() -> None:
    x, w = torch.randn(3, 16).bfloat16(), torch.randn(16).bfloat16()
    normed = (x.float() / (x.float().pow(2).mean(-1, keepdim=True) + 1e-3).sqrt()).bfloat16()
    torch.testing.assert_close(rms_norm(x, w, eps=1e-3), w * normed, rtol=1e-2, atol=1e-2)
    assert rms_norm(x, w, eps=1e-3).dtype == torch.bfloat16


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotation_depends_only_on_the_distance(layout: str) -> None:
    rope = Rope(dim=8, theta=100.0)
    cos, sin = rope_tables(rope, 40, dtype=torch.float32, device=torch.device("cpu"))
    q, k = torch.randn(8), torch.randn(8)
    turned_q, turned_k = (rotate(x.expand(40, 8), cos, sin, layout=layout) for x in (q, k))
    for distance in (0, 1, 7):
        dots = (turned_q[distance:] * turned_k[: 40 - distance]).sum(-1)
        torch.testing.assert_close(dots, dots[:1].expand_as(dots), rtol=1e-4, atol=1e-4)


def test_interleaved_pairs_neighbours() -> None:
    """Rotating by one step turns pair j by theta^(-2j/D); half layout pairs j with j + D/2."""
    rope = Rope(dim=4, theta=16.0)
    cos, sin = rope_tables(rope, 2, dtype=torch.float32, device=torch.device("cpu"))
    x = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(2, 4)
    expected = torch.tensor([math.cos(1), 0.0, math.sin(1), 0.0])
    torch.testing.assert_close(rotate(x, cos, sin, layout="interleaved")[1], expected)
    torch.testing.assert_close(rotate(x, cos, sin, layout="half")[1], expected)
    y = torch.tensor([0.0, 1.0, 0.0, 0.0]).expand(2, 4)
    torch.testing.assert_close(rotate(y, cos, sin, layout="interleaved")[1], torch.tensor([-math.sin(1), 0.0, math.cos(1), 0.0]))
    slow = torch.tensor([0.0, math.cos(0.25), 0.0, math.sin(0.25)])
    torch.testing.assert_close(rotate(y, cos, sin, layout="half")[1], slow)


def test_llama3_bands() -> None:
    """Long wavelengths are divided by the factor, short ones kept, and equal bounds give finite frequencies."""
    plain = inverse_frequencies(Rope(dim=64, theta=5e5), 1)
    scaled = inverse_frequencies(Rope(dim=64, theta=5e5, kind="llama3", factor=8, low=1, high=4, original_max_positions=8192), 1)
    wavelength = 2 * math.pi / plain
    assert torch.equal(scaled[wavelength < 8192 / 4], plain[wavelength < 8192 / 4])
    torch.testing.assert_close(scaled[wavelength > 8192], plain[wavelength > 8192] / 8)
    middle = (wavelength > 8192 / 4) & (wavelength < 8192)
    assert ((scaled < plain) & (scaled > plain / 8))[middle].all()
    assert middle.any()
    equal = inverse_frequencies(Rope(dim=64, theta=5e5, kind="llama3", factor=16, low=1, high=1, original_max_positions=8192), 1)
    assert equal.isfinite().all()


def test_yarn_keeps_fast_and_divides_slow_frequencies() -> None:
    plain = inverse_frequencies(Rope(dim=64, theta=1e4), 1)
    scaled = inverse_frequencies(Rope(dim=64, theta=1e4, kind="yarn", factor=40, low=10, high=23), 1)
    torch.testing.assert_close(scaled[:11], plain[:11])
    torch.testing.assert_close(scaled[23:], plain[23:] / 40)
    one_step = inverse_frequencies(Rope(dim=64, theta=1e4, kind="yarn", factor=40, low=12, high=12), 1)
    torch.testing.assert_close(one_step, torch.where(torch.arange(32) <= 12, plain, plain / 40))


def test_streamed_embedding_reads_the_table_once_and_only_where_ids_fall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table_VH = torch.randn(40, 3)
    table_VH[39, 1] = torch.nan
    save_file({"embed": table_VH}, tmp_path / "model.safetensors")
    spec = build_spec({**LLAMA, "vocab_size": 40, "hidden_size": 3})
    spec = replace(spec, tensors={"embed": TensorRef(name="embed", shape=(40, 3))})
    monkeypatch.setattr(weights, "_CHUNK_BYTES", 4 * 3 * 8)
    with TensorReader(open_index(tmp_path)) as reader:
        source = weights.WeightReader(spec, reader, dtype=torch.float32, device=torch.device("cpu"))
        batches = [torch.tensor([[0, 7, 9], [9, 0, 1]]), torch.tensor([[30]])]
        for ids_BS, x_BSH in zip(batches, source.embed(batches), strict=True):
            assert torch.equal(x_BSH, table_VH[ids_BS])
        assert reader.bytes_read == 3 * 8 * 3 * 4
        with pytest.raises(ModelError, match=r"the first at \[39, 1\]"):
            source.embed([torch.tensor([[35]])])
