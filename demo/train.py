"""Train the demo model and put it into the package: `make demo-model`. Interrupted, it continues where it was last saved.

python demo/train.py                 the model of `moectl/demo_model`
python demo/train.py --dense         its dense twin, into runs/demo-dense/final
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from recipe import DENSE_CONFIG, MOE_CONFIG, SEQ_LEN, VOCAB_SIZE, WEIGHTS, train_options, train_tokenizer

import moectl
from moectl.arch.registry import build_spec
from moectl.checkpoint.companions import copy_companions
from moectl.data.packing import load_domains
from moectl.model.decoder import Model
from moectl.model.load import open_checkpoint
from moectl.model.save import save_model
from moectl.staging import staged_directory
from moectl.training.initialize import RandomWeights
from moectl.training.loop import TrainJob, train

STEPS = 2600
HELDOUT_TOKENS = 40_000
PACKAGE_FOLDER = Path(moectl.__file__).parent / "demo_model"


class Lines:
    """Progress as plain lines."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def stage(self, name: str, total: float, unit: str) -> None:
        self.notice(f"{name}: {total:,.0f} {unit}")

    def advance(self, amount: float) -> None: ...

    def notice(self, text: str) -> None:
        print(f"[{time.perf_counter() - self._start:7.0f} s] {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", action="store_true", help="train the dense twin instead")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where checkpoints, logs and the tokenizer go")
    arguments = parser.parse_args()
    progress = Lines()
    config = DENSE_CONFIG if arguments.dense else MOE_CONFIG
    run = arguments.runs / ("demo-dense" if arguments.dense else "demo-moe")
    out = run / "final" if arguments.dense else PACKAGE_FOLDER

    tokenizer = arguments.runs / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        progress.notice("training the tokenizer")
        train_tokenizer(tokenizer)
    progress.notice("reading the data")
    data = load_domains(["demo:train"], folder=tokenizer, vocab_size=VOCAB_SIZE, seq_len=SEQ_LEN)
    heldout = load_domains(["demo:heldout"], folder=tokenizer, vocab_size=VOCAB_SIZE, seq_len=SEQ_LEN, tokens=HELDOUT_TOKENS)
    progress.notice("training tokens: " + ", ".join(f"{domain.name} {domain.n_tokens:,}" for domain in data))

    spec = build_spec(config)
    job = TrainJob(
        folder=run,
        config=config,
        initial=lambda: Model(spec, RandomWeights(spec, std=config["initializer_range"], seed=0), mtp=True),
        domains=data,
        heldout=heldout,
        options=train_options(arguments.steps),
        weights=WEIGHTS,
        boundary_ids=frozenset({config["eos_token_id"]}),
        companions=tokenizer,
    )
    last = train(job, resume=True, progress=progress)

    with open_checkpoint(str(last)) as checkpoint:
        weights = checkpoint.weights(dtype=torch.bfloat16, device=torch.device("cpu"))
        model = Model(checkpoint.spec, weights, mtp=bool(checkpoint.spec.mtp))
    with staged_directory(out, overwrite=True) as folder:
        save_model(model, config, folder)
        copy_companions(tokenizer, folder)
        # Says that moectl wrote the folder, so that training again may replace it.
        (folder / "moectl.json").write_text((last / "moectl.json").read_text(encoding="utf-8"), encoding="utf-8")
    progress.notice(f"wrote {out}")


if __name__ == "__main__":
    sys.exit(main())
