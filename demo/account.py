"""Write the account of the demo model: docs/demo-model.md, its figure, and the thinned training log beside it.

    python demo/account.py

Every number on the page is computed (see `measure.py`), from the model's folder, the logs of its runs and the running Python's text.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from chart import Line, line_chart
from measure import ALL, DISCOUNT, PERMUTATIONS, Account, LayerRouting, Losses, last_heldout, measure
from recipe import DENSE_CONFIG, WEIGHTS
from train import PACKAGE_FOLDER

from moectl.arch.counts import count_parameters
from moectl.arch.parts import LatentAttention, MoE, Router
from moectl.arch.registry import build_spec
from moectl.routing.metrics.load import max_vio_noise_floor
from moectl.units import format_bytes, format_count, format_seconds

LOG_EVERY = 50
WINDOW = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=PACKAGE_FOLDER, help="the trained model's folder")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the logs of the runs are")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the account goes")
    arguments = parser.parse_args()
    for needed in (arguments.model / "config.json", arguments.runs / "demo-moe" / "metrics.jsonl"):
        if not needed.is_file():
            sys.exit(f"there is no {needed}: run `make demo-model` first")

    account = measure(arguments.model, arguments.runs)
    arguments.docs.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("demo-model.md", page(account)),
        ("demo-model.svg", figure(account)),
        ("demo-model-log.jsonl", "".join(json.dumps(line) + "\n" for line in thin(account.log))),
    ):
        (arguments.docs / name).write_text(text, encoding="utf-8")
    print("\n".join(key_figures(account)))


def thin(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every held-out line, the first step logged, every `LOG_EVERY`-th and the last; without the load of each expert."""
    steps = [line["step"] for line in log if "loss" in line]
    kept = [line for line in log if "heldout" in line or line["step"] % LOG_EVERY == 0 or line["step"] in (steps[0], steps[-1])]
    return [{key: _without_loads(value) if key == "layers" else value for key, value in line.items()} for line in kept]


def _without_loads(layers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {layer: {name: value for name, value in values.items() if name != "load_fractions"} for layer, values in layers.items()}


def page(account: Account) -> str:
    """The Markdown, prose filled to the width of the other pages."""
    sections = (introduction, sizes, training, heldout_loss, balance, specialisation, repeating)
    blocks = "\n\n".join(section(account) for section in sections).split("\n\n")
    return "\n\n".join(block if block.startswith(("#", "|", "`" * 3, "!")) else _filled(block) for block in blocks) + "\n"


def introduction(_: Account) -> str:
    return """# The demo model

`demo` is a small language model that comes with moectl, so that there is something to look at before anything is downloaded:

```console
$ moectl route-stats demo --tokens 16k
```

It is a real MoE, trained from scratch on the [built-in data](guides/route-stats.md#the-built-in-data), Python's own standard library. It
is there to be measured, and far too small to be of other use. `python demo/account.py` writes this page: all figures are computed, from
the shipped file (bfloat16, in float32 arithmetic) and the [log](demo-model-log.jsonl) of its training."""


def sizes(account: Account) -> str:
    spec, parameters = account.spec, count_parameters(account.spec)
    attention, ffn = spec.layers[-1].attention, spec.layers[-1].ffn
    assert isinstance(attention, LatentAttention)
    assert isinstance(ffn, MoE)
    heads = f"{attention.n_heads} heads, keys {attention.nope_dim} + {attention.rope.dim} rotary, values {attention.value_dim}"
    mtp = sum(ref.numel for ref in spec.mtp_refs())
    n_dense = len(spec.layers) - len(spec.moe_layers)
    rows = [
        ("family", f"`{spec.model_type}`"),
        ("layers", f"{len(spec.layers)}, the first {n_dense} dense; then {spec.n_mtp_layers} for multi-token prediction (MTP)"),
        ("hidden size", f"{spec.hidden_size}"),
        ("attention", f"latent: {heads}; latents {attention.q_lora_rank} (queries) and {attention.kv_lora_rank} (keys and values)"),
        ("router", ffn.router.formula()),
        ("width of an expert", f"{ffn.expert_width}; the shared one {ffn.shared_width}"),
        ("vocabulary", f"{spec.vocab_size:,}, a byte-level BPE of its own"),
        ("context", f"{spec.max_positions:,} tokens"),
        ("parameters", f"{parameters.total:,}, of which {parameters.active:,} active for a token; {mtp:,} more for MTP"),
        ("routed experts", f"{parameters.routed_experts:,} parameters, {_percent(parameters.routed_experts / parameters.total)} of all"),
        ("file", f"{format_bytes((account.folder / 'model.safetensors').stat().st_size)}, bfloat16"),
    ]
    return f"""## What it is

The architecture of DeepSeek-V3 (arXiv 2412.19437), every part of it and each one small. Active parameters count the head and not the
embedding table.

{_table(("", ""), rows)}"""


def training(account: Account) -> str:
    options, even = account.options, account.options["balance"]
    batch = options["batch_tokens"] * options["accumulation"]
    total = options["steps"] * batch
    shares = {name: weight / sum(WEIGHTS.values()) for name, weight in WEIGHTS.items()}
    rows = [
        (f"`{d.name}`", f"{d.n_tokens:,}", _percent(shares[d.name]), f"{total * shares[d.name] / d.n_tokens:.2f}") for d in account.train
    ]
    auxiliary = [f"`{name}` {even[name]:g}" for name in ("switch_alpha", "sequence_alpha", "z_alpha") if even[name]]
    rate = statistics.median(line["tokens_per_s"] for line in account.steps)
    return f"""## How it was trained

{options["steps"]:,} steps of {batch // options["seq_len"]} sequences of {options["seq_len"]} tokens, {format_count(total)} tokens in all,
in float32 on 2 CPU cores: {rate:,.0f} tokens/s (median of the log), {format_seconds(account.seconds)} of steps. The parameters were then
rounded to bfloat16.

{_table(("domain", "tokens to train on", "share of the sequences", "times seen"), rows)}

AdamW (beta {options["beta1"]:g} and {options["beta2"]:g}, weight decay {options["weight_decay"]:g}, gradients clipped to
{options["clip"]:g}); learning rate {options["lr"]:g} after {options["warmup_steps"]} steps of warm-up, then {options["schedule"]} to
{options["min_lr"]:g}. The MTP loss weighs {options["mtp_weight"]:g}, from {_percent(options["mtp_late_fraction"])} of the run on
{options["mtp_weight_late"]:g}. Against uneven experts there is the correction bias of the routers, which moves by {even["bias_gamma"]:g} a
step (arXiv 2408.15664) and stands still for the last {_percent(even["bias_freeze_fraction"], 1)} of the run, and
{"auxiliary losses: " + ", ".join(auxiliary) if auxiliary else "no auxiliary loss"}. Sequences of several domains are in every batch."""


def heldout_loss(account: Account) -> str:
    below = {name: account.trigram[name] - account.model[name] for name in account.model}
    columns: list[tuple[str, Losses]] = [
        ("unigram", account.unigram),
        ("trigram", account.trigram),
        ("demo model", account.model),
        ("below the trigram by", below),
    ]
    twin = ""
    if dense := last_heldout(account.dense_log):
        columns.append(("dense twin", dense[1]))
        size = count_parameters(build_spec(DENSE_CONFIG))
        twin = f"""The dense twin has in every layer one feed-forward block, as wide as all that a token of the MoE meets in one:
{format_count(size.total)} parameters, {format_count(size.active)} active. Its loss is that of its own log at step {dense[0]:,}."""
    tokens = {ALL: sum(d.n_tokens for d in account.heldout), **{d.name: d.n_tokens for d in account.heldout}}
    rows = [
        (
            name if name == ALL else f"`{name}`",
            f"{n:,}",
            *(f"{losses[name]:.3f}" for _, losses in columns),
        )
        for name, n in tokens.items()
    ]
    return f"""## What it learnt

Loss on held-out text, nats a token:

{_table(("domain", "tokens", *(name for name, _ in columns)), rows)}

The baselines are trained on all the training tokens, with the same tokenizer, and predict the same positions: an add-one unigram, and an
interpolated Kneser-Ney trigram (discount {DISCOUNT:g}), each one model for all domains. The demo model is {abs(below[ALL]):.3f} nats a
token {"below" if below[ALL] > 0 else "above"} the trigram. {twin}

![Held-out loss over the training steps, with the baselines](demo-model.svg)"""


def balance(account: Account) -> str:
    steps, batch, router = account.steps, account.options["batch_tokens"], _router(account)
    layers = sorted(map(int, steps[-1]["layers"]))
    n = min(WINDOW, len(steps))
    rows = []
    for end in sorted({round(x) for x in np.geomspace(n, len(steps), 8)}):
        window = steps[end - n : end]
        values = [statistics.fmean(line["layers"][str(layer)]["max_vio"] for line in window) for layer in layers]
        rows.append((f"{window[0]['step']:,} to {window[-1]['step']:,}", *(f"{value:.2f}" for value in values)))
    header = ("steps", *(f"layer {layer}" if layer < len(account.spec.layers) else f"layer {layer} (MTP)" for layer in layers))
    even_E = np.full(router.n_experts, batch * router.top_k // router.n_experts)
    heldout = [(row.layer, f"{row.max_vio:.2f}", f"{row.max_vio_as_trained:.2f}", f"{row.noise_floor:.2f}") for row in account.routing]
    return f"""## Are its experts evenly loaded?

MaxVio is how far the busiest expert of a layer is above its even share: 0 is even, 1 is twice the even share, and
{router.n_experts / router.top_k - 1:g} is the worst that top-{router.top_k} of {router.n_experts} can do. In training, of one batch of
{batch:,} tokens, the mean over {n} logged steps:

{_table(header, rows)}

Chance alone would give an even router {float(max_vio_noise_floor(even_E, router.top_k)):.2f} in such a batch if tokens were independent.
Those of one text are alike, and {batch // account.options["seq_len"]} sequences are few texts, so some more than that is no sign of
imbalance.

On the held-out text of the table above, all together (the MTP layer does not run here): in equal parts, and with the domains weighted as in
training, which is the mixture that the bias evens out.

{_table(("layer", "MaxVio, equal parts", "MaxVio, mixed as in training", "chance, independent tokens"), heldout)}"""


def specialisation(account: Account) -> str:
    D, router, routing = len(account.heldout), _router(account), account.routing
    rows = [
        (row.layer, f"{row.information:.4f}", f"{row.floor.mean:.4f}", f"{row.floor.quantile_95:.4f}", f"{row.jsd:.4f}") for row in routing
    ]
    beyond = sum(row.information > row.floor.quantile_95 for row in routing)
    most, least = max(routing, key=_information), min(routing, key=_information)
    return f"""## Do its experts specialise?

I(domain; expert) is what one pick of an expert tells about the domain of the text, in bits, all domains weighing the same: 0 if every
domain loads the experts alike. {D} domains hold at most log2 {D} = {np.log2(D):.2f} bits, and where a token runs {router.top_k} different
experts of {router.n_experts}, one of them cannot tell more than log2({router.n_experts}/{router.top_k}) =
{np.log2(router.n_experts / router.top_k):.2f}. Chance is the same figure with the held-out sequences dealt to the domains at random,
{PERMUTATIONS:,} times: sequences and not tokens, because the tokens of a text go together. (Long documents fill several sequences, so true
chance is somewhat higher.) The last column is the Jensen-Shannon divergence of two domains' loads, the mean over all pairs, at most 1.

{_table(("layer", "I, bits", "chance, mean", "chance, 95 % below", "JSD of two domains, bits"), rows)}

{beyond} of {len(rows)} layers are above what 95 % of random deals stay below. Layer {most.layer} tells most, {_told(most)}; layer
{least.layer} least, {_told(least)}."""


def repeating(account: Account) -> str:
    here = platform.python_version()
    text = (
        f"This page was written with Python {here}, which has the very text that the model was trained on."
        if account.same_text
        else f"This page was written with Python {here}, which has other text: some of what is held out here may have been trained on, and "
        "the baselines have learnt from other text than the model."
    )
    return f"""## Repeat it

```console
$ make demo-dense
$ make demo-model
```

The first trains the dense twin, and may be left out. The second trains tokenizer and model, puts both into the package
({format_seconds(account.seconds)} of steps at the speed above, and the evaluations in between), and writes this page. Interrupted, either
goes on from its last checkpoint, of which there is one every {account.options["save_every"]} steps, and ends with the same model.

The text is the standard library of the Python that runs moectl, so another version, or another build, has other text. A document stays in
its split, held out or not, as long as its file or table keeps its name; but files are edited, the character tables grow, and the
instructions of `bytecode` are those of one minor version. Compare losses on `demo` under one Python only, and expect another model from
training under another. This one was trained with Python {account.python_version}. {text}"""


def figure(account: Account) -> str:
    end = account.log[-1]["step"]
    lines = [
        Line(f"{name} {losses[ALL]:.2f}", [(0, losses[ALL]), (end, losses[ALL])], dashed=True)
        for name, losses in (("unigram", account.unigram), ("trigram", account.trigram))
    ]
    lines.append(Line(f"demo model {account.model[ALL]:.2f}", _curve(account.log)))
    if dense := last_heldout(account.dense_log):
        lines.append(Line(f"dense twin {dense[1][ALL]:.2f}", _curve(account.dense_log)))
    return line_chart(lines, title="Loss on held-out text over training", x_label="step", y_label="nats a token")


def key_figures(account: Account) -> list[str]:
    parameters, dense = count_parameters(account.spec), last_heldout(account.dense_log)
    return [
        f"parameters     {parameters.total:,} total, {parameters.active:,} active",
        f"held-out loss  unigram {account.unigram[ALL]:.4f}, trigram {account.trigram[ALL]:.4f}, demo model {account.model[ALL]:.4f}"
        + (f", dense twin {dense[1][ALL]:.4f} (step {dense[0]:,})" if dense else ""),
        f"margin         {account.trigram[ALL] - account.model[ALL]:+.4f} nats a token below the trigram",
        "MaxVio         " + ", ".join(f"{row.layer}: {row.max_vio:.3f}" for row in account.routing) + " (held-out text in equal parts)",
        "               " + ", ".join(f"{row.layer}: {row.max_vio_as_trained:.3f}" for row in account.routing) + " (mixed as in training)",
        "I(dom;expert)  " + ", ".join(f"{row.layer}: {row.information:.4f}" for row in account.routing) + " bits",
        "               "
        + ", ".join(f"{row.layer}: {row.floor.quantile_95:.4f}" for row in account.routing)
        + " (95 % of random deals below)",
        f"training text  {'the same' if account.same_text else 'NOT the same'} as the model's, of Python {account.python_version}",
    ]


def _router(account: Account) -> Router:
    ffn = account.spec.moe_layers[-1].ffn
    assert isinstance(ffn, MoE)
    return ffn.router


def _curve(log: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(line["step"], line["heldout"]["mean"]) for line in log if "heldout" in line]


def _information(row: LayerRouting) -> float:
    return row.information


def _told(row: LayerRouting) -> str:
    return f"{row.information:.3f} bits or {row.information / row.floor.mean:.0f} times the mean of chance"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head, *body = (f"| {' | '.join(map(str, row))} |" for row in (header, *rows))
    return "\n".join([head, "|" + "---|" * len(header), *body])


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), width=140, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    main()
