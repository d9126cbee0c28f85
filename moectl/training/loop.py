"""The training loop. All that trains in moectl trains here.

    last = train(job, resume=False, progress=Silence())

One optimiser step: the next sequences, `accumulation` micro-batches forward and backward, clip, AdamW, then the routers' correction biases
from the loads just counted. A run stopped anywhere resumes from its last checkpoint and ends with the same bytes (on CPU).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moectl import provenance
from moectl.arch.parts import MoE
from moectl.arch.registry import build_spec
from moectl.checkpoint.dtypes import torch_dtype
from moectl.data.batching import MicroBatch, micro_batches
from moectl.data.packing import Domain
from moectl.errors import DataError, ModelError, UsageError
from moectl.model.decoder import Model
from moectl.model.load import open_checkpoint
from moectl.model.save import named_weights
from moectl.plan import Progress
from moectl.training.balance import gamma_at
from moectl.training.bias import LoadCounts, load_summary, update_bias
from moectl.training.checkpoint import checkpoints, load_optimizer, load_state, save_checkpoint, tidy
from moectl.training.evaluate import evaluate, mean_loss
from moectl.training.forward import Losses, Normalizers, batch_losses, count_targets
from moectl.training.metrics import MetricsLog
from moectl.training.optimizer import MasterAdamW
from moectl.training.options import TrainOptions
from moectl.training.order import DataOrder
from moectl.training.schedule import learning_rate, mtp_weight
from moectl.training.self_test import check_auxiliary_gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """A run: what starts it, what it reads, where it writes.

    `initial` makes the model of step 0 (float32 or bfloat16, MTP modules included if they are to be trained); `config` is its config.json.
    `companions`: a folder whose tokenizer files go into every checkpoint. `boundary_ids`: tokens that end a document.
    """

    folder: Path
    config: Mapping[str, Any]
    initial: Callable[[], Model]
    domains: Sequence[Domain]
    heldout: Sequence[Domain]
    options: TrainOptions
    weights: Mapping[str, float] | None = None
    boundary_ids: frozenset[int] = frozenset()
    companions: Path | None = None
    tensorboard: bool = False
    device: str = "cpu"
    """Where a resumed model goes; `initial` puts a new one there itself."""


def train(job: TrainJob, *, resume: bool, progress: Progress) -> Path:
    """Train to the last step; the folder of the last checkpoint.

    Without `resume` the run's folder must not hold a run yet. Raises UsageError (folder in use, other options on resume), ModelError (loss
    or gradient not finite: the last checkpoint stays as it is), DataError, ResourceError.
    """
    run = _Run(job, resume=resume, progress=progress)
    try:
        return run.to_the_end()
    finally:
        run.log.close()


class _Run:
    """One process's life of a run."""

    def __init__(self, job: TrainJob, *, resume: bool, progress: Progress) -> None:
        self.job, self.options, self.progress = job, job.options, progress
        self.order = DataOrder(job.domains, seq_len=job.options.seq_len, seed=job.options.seed, weights=job.weights)
        self.heldout: list[MicroBatch] = micro_batches(job.heldout, job.options.batch_tokens)
        # What has to be the same for a resumed run to be the same run.
        self.identity = {
            "options": job.options.to_json(),
            "data_sha256": self.order.sha256,
            "boundary_ids": sorted(job.boundary_ids),
        }
        found = checkpoints(job.folder)
        if found and not resume:
            raise UsageError(f"`{job.folder}` holds a run that is at step {found[-1][0]}", hint="resume it, or choose another folder")
        self.step = 0
        if found:
            self.step, path = found[-1]
            self.order.restore(load_state(path, expected=self.identity, config=job.config)["taken"])
            self.model = _load(path, torch.device(job.device))
        else:
            self.model = job.initial()
        _check_ids(job.domains, self.model.spec.vocab_size)
        # The layout that checkpoints are written in, whatever the model came in.
        spec = build_spec(job.config)
        named = {ref.part_name: parameter for ref, parameter in named_weights(self.model, spec)}
        layers = (*spec.layers, *(ahead.layer for ahead in spec.mtp[: len(self.model.mtp)]))
        bias_names = {layer.tensors["correction_bias"].part_name: layer.index for layer in layers if "correction_bias" in layer.tensors}
        self.biases = {index: named.pop(name) for name, index in bias_names.items()}
        for parameter in named.values():
            parameter.requires_grad_()
        self.optimizer = MasterAdamW(named, job.options)
        if found:
            load_optimizer(path, self.optimizer)
        routers = {layer.index: layer.ffn.router for layer in layers if isinstance(layer.ffn, MoE)}
        self.moe_layers = sorted(routers)
        self.loads = LoadCounts({index: router.n_experts for index, router in routers.items()})
        self.probe_BS = torch.from_numpy(DataOrder(job.domains, seq_len=job.options.seq_len, seed=0).take(1)).to(self.model.embed.device)
        tidy(job.folder, keep_last=job.options.keep_last)
        self.log = MetricsLog(job.folder, resume_step=self.step if found else None, tensorboard=job.tensorboard)

    def to_the_end(self) -> Path:
        options = self.options
        check_auxiliary_gradient(self.model, self.probe_BS, options.balance)
        self.progress.stage("training", options.steps, "steps")
        self.progress.advance(self.step)
        started, tokens = time.perf_counter(), 0
        if self.step == 0:
            self._evaluate()
        while self.step < options.steps:
            values = self._one_step()
            self.step += 1
            tokens += options.sequences_per_batch * options.seq_len * options.accumulation
            last = self.step == options.steps
            if self.step % options.log_every == 0 or last:
                self.log.write(self.step, {**values, "tokens_per_s": round(tokens / (time.perf_counter() - started), 1)})
                started, tokens = time.perf_counter(), 0
            if self.step % options.eval_every == 0 or last:
                self._evaluate()
                started, tokens = time.perf_counter(), 0
            if self.step % options.save_every == 0 or last:
                self._save()
                started, tokens = time.perf_counter(), 0
            self.progress.advance(1)
        return checkpoints(self.job.folder)[-1][1]

    def _one_step(self) -> dict[str, Any]:
        options, step = self.options, self.step
        ids_NS = torch.from_numpy(self.order.take(options.sequences_per_batch * options.accumulation)).to(self.model.embed.device)
        per_step = count_targets(ids_NS, len(self.model.mtp), self.job.boundary_ids)
        lr, gamma, ahead_weight = learning_rate(options, step), gamma_at(options.balance, step, options.steps), mtp_weight(options, step)
        self.optimizer.zero_grad()
        self.loads.reset()
        main = auxiliary = 0.0
        ahead = [0.0] * len(self.model.mtp)
        for ids_BS in torch.split(ids_NS, options.sequences_per_batch):
            losses = self._add_gradient(ids_BS, per_step, ahead_weight)
            for layer, routing in losses.routings:
                self.loads.add(layer, routing.expert_ids_TK)
            main += float(losses.main)
            auxiliary += float(losses.auxiliary)
            ahead = [total + float(part) for total, part in zip(ahead, losses.ahead, strict=True)]
        grad_norm = self.optimizer.clip()
        if not math.isfinite(main + auxiliary + sum(ahead) + grad_norm):
            raise self._diverged(step + 1, f"loss {main:g}, gradient norm {grad_norm:g}")
        self.optimizer.step(lr)
        for layer, bias_E in self.biases.items():
            update_bias(bias_E, self.loads.load(layer), gamma)
        return {
            "tokens": (step + 1) * ids_NS.numel(),
            "loss": main,
            **{f"mtp_loss_{n + 1}": value for n, value in enumerate(ahead)},
            "auxiliary_loss": auxiliary,
            "lr": lr,
            "grad_norm": grad_norm,
            "bias_gamma": gamma,
            "layers": {str(layer): load_summary(self.loads.load(layer)) for layer in self.moe_layers},
        }

    def _add_gradient(self, ids_BS: Tensor, per_step: Normalizers, ahead_weight: float) -> Losses:
        """One micro-batch, there and back."""
        losses = batch_losses(
            self.model,
            ids_BS,
            per_step,
            balance=self.options.balance,
            mtp_weight=ahead_weight,
            boundary_ids=self.job.boundary_ids,
            recompute=self.options.recompute,
        )
        losses.total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.collect()
        return losses

    def _evaluate(self) -> None:
        if not self.heldout:
            return
        losses = evaluate(self.model, self.heldout, [domain.name for domain in self.job.heldout])
        if not losses:
            return
        values = {"heldout": {"mean": mean_loss(losses), **{name: item.loss for name, item in losses.items()}}}
        self.log.write(self.step, values)
        self.progress.notice(f"step {self.step:,}: held-out loss {values['heldout']['mean']:.4f} nats a token")

    def _save(self) -> None:
        self._check_health()
        # A checkpoint goes on from the lines up to its step: they have to be on disk before it is.
        self.log.flush()
        save_checkpoint(
            self.job.folder,
            self.step,
            model=self.model,
            config=self.job.config,
            optimizer=self.optimizer,
            state={"taken": self.order.taken, **self.identity},
            provenance=provenance.full(
                provenance.stable(
                    command="train", model=str(self.job.folder), revision=None, config=self.job.config, settings=self.identity
                ),
                circumstances={"threads": torch.get_num_threads()},
            ),
            companions=self.job.companions,
            keep_last=self.options.keep_last,
        )

    def _check_health(self) -> None:
        """A model that has blown up must not push a good checkpoint out: it has to be able to go on. Loss alone does not tell: the norms
        turn weights of 1e25 into zeros."""
        per_step = count_targets(self.probe_BS, len(self.model.mtp), self.job.boundary_ids)
        self.optimizer.zero_grad()
        loss = float(self._add_gradient(self.probe_BS, per_step, mtp_weight(self.options, self.step)).total.detach())
        grad_norm = self.optimizer.clip()
        if not math.isfinite(loss + grad_norm):
            raise self._diverged(self.step, f"its update leads to loss {loss:g}, gradient norm {grad_norm:g}")
        # Experts and embeddings that no token of the probe met.
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._diverged(self.step, "its update left weights that are not finite")

    def _diverged(self, step: int, how: str) -> ModelError:
        found = checkpoints(self.job.folder)
        kept = f"the last good checkpoint is `{found[-1][1]}`" if found else "no checkpoint had been written yet"
        return ModelError(
            f"training diverged at step {step:,}: {how}; {kept}",
            hint="start a new run, from there if you like, with a lower learning rate or a longer warm-up, or look for damaged text",
        )


def _check_ids(domains: Sequence[Domain], vocab_size: int) -> None:
    for domain in domains:
        low, high = int(domain.token_ids.min()), int(domain.token_ids.max())
        if low < 0 or high >= vocab_size:
            raise DataError(
                f"the domain `{domain.name}` holds the token id `{low if low < 0 else high}`, outside the vocabulary of {vocab_size}",
                hint="the text was tokenised for another model",
            )


def _load(path: Path, device: torch.device) -> Model:
    """The model of a checkpoint, in the dtype it was trained in."""
    with open_checkpoint(str(path)) as checkpoint:
        stored = checkpoint.index.tensors[checkpoint.spec.tensors["embed"].name].dtype
        return Model(
            checkpoint.spec,
            checkpoint.weights(dtype=torch_dtype(stored), device=device),
            mtp=any(ref.name in checkpoint.index.tensors for ref in checkpoint.spec.mtp_refs()),
        )
