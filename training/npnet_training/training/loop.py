"""The training loop."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from npnet_runtime import checkpoint
from npnet_runtime.files import atomic_file
from npnet_training.errors import TrainError
from npnet_training.settings import differences
from npnet_training.training.averaging import WeightAverage
from npnet_training.training.batch import TrainBatch
from npnet_training.training.data import TrainingData, open_data
from npnet_training.training.losses import Loss, target_of
from npnet_training.training.networks import (
    autocast_products,
    freeze,
    make_network,
    parameter_groups,
    without_scalars,
)
from npnet_training.training.objectives import make_loss
from npnet_training.training.order import BatchOrder, BatchRows
from npnet_training.training.report import CURVES, describe, draw_curves
from npnet_training.training.schedule import learning_rate
from npnet_training.training.settings import RESUMABLE, TrainSettings
from npnet_training.training.state import (
    gather_state,
    last_state,
    read_state,
    restore,
    whole_weights,
    write_state,
)

Report = Callable[[dict[str, Any]], None]
LOG, BEST, LAST, RUN = "log.jsonl", "best.safetensors", "last.safetensors", "run.json"


@dataclass
class Progress:
    """Where a run is; everything of it that is not a tensor."""

    step: int = 0
    best: float = math.inf
    worse: int = 0
    skipped: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def train(settings: TrainSettings, report: Report = lambda entry: None) -> dict[str, Any]:
    """Train a network on noise pairs.

    Args:
        settings: see there.
        report: called with every entry of the log, on the first process.

    Returns:
        Summary, as in `run.json`: errors of the identity map and the network on the validation prompts (or
        the training pairs if there are none), share of the target change that is explained.

    Raises:
        TrainingError: anything that keeps the run from starting or going on.
    """
    return Trainer(settings, report).run()


class Trainer:
    """A run in progress."""

    def __init__(self, settings: TrainSettings, report: Report) -> None:
        self.settings, self.report = settings, report
        self.accelerator = Accelerator(mixed_precision="no")
        torch.backends.cuda.matmul.allow_tf32 = settings.precision == "tf32"
        _require_folder(settings)
        self.data: TrainingData = open_data(settings, self.accelerator)
        self.loss: Loss = make_loss(settings, self.data.pairs.info, self.accelerator.device)
        network = make_network(settings, self.data.pairs.info)
        freeze(network, settings.freeze, from_nothing=settings.start_from is None)
        self.config: Any = network.config
        self.scalars = without_scalars(network)
        if settings.precision == "bf16":
            autocast_products(network, self.accelerator.device.type)
        if settings.compile:
            network.compile()
        options = settings.optimizer
        optimizer = torch.optim.AdamW(
            parameter_groups(network, options.weight_decay), options.learning_rate, betas=options.betas,
            fused=True,
        )  # fmt: skip
        self.network: nn.Module
        self.network, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.average = WeightAverage(self.network, options.ema)
        self.order = BatchOrder(
            self.data.train, settings.batch_size, settings.seed, self.accelerator.num_processes,
            self.accelerator.process_index, settings.accumulation,
        )  # fmt: skip
        self.total = settings.epochs * self.order.steps_per_epoch
        self.last = min(self.total, settings.max_steps or self.total)
        self.progress = Progress()
        if settings.resume:
            self._resume()

    def run(self) -> dict[str, Any]:
        """All steps, validations and files."""
        settings, began = self.settings, time.perf_counter()
        first = self.progress.step
        every = settings.validation.every or self.order.steps_per_epoch
        batches = self.data.reader.batches(
            self.order.parts(first, self.last), self.accelerator.device, settings.workers
        )
        losses: list[float] = []
        for step in range(first, self.last):
            loss = self._step(step, [next(batches) for _ in range(settings.accumulation)])
            if loss is not None:
                losses.append(loss)
            self.progress.step = step + 1
            if losses and ((step + 1) % settings.log_every == 0 or step + 1 == self.last):
                rate = (step + 1 - first) * settings.batch_size / (time.perf_counter() - began)
                self._log({"step": step + 1, "loss": float(np.mean(losses)), "pairs_per_second": rate})
                losses = []
            if (step + 1) % every == 0 or step + 1 == self.last:
                self._validate()
            if (step + 1) % settings.save_every == 0 or step + 1 == self.last:
                self._save_state()
            patience = settings.validation.patience
            if patience is not None and self.progress.worse >= patience:
                break
        return self._finish(time.perf_counter() - began)

    def _step(self, step: int, parts: list[TrainBatch]) -> float | None:
        self.network.train()
        total = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(parts):
            last = number + 1 == len(parts)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.network):
                loss = self.loss(self._golden(batch), batch) / len(parts)
                self.accelerator.backward(loss)
            total += loss.detach()
        clip = self.settings.optimizer.clip
        norm: Any = self.accelerator.clip_grad_norm_(self.network.parameters(), clip or math.inf)
        # The norm is of all processes' gradients, so that all of them decide alike.
        if not math.isfinite(float(norm)):
            self.optimizer.zero_grad()
            self.progress.skipped += 1
            if self.progress.skipped >= self.settings.max_skipped:
                raise TrainError(
                    f"{self.progress.skipped} steps in a row had no finite gradient, the last is step "
                    f"{step}; lower --optimizer.learning-rate, or give --optimizer.clip 1"
                )
            return None
        self.progress.skipped = 0
        rate = learning_rate(self.settings.optimizer, step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(step)
        return float(self.accelerator.reduce(total, "mean"))

    def _golden(self, batch: TrainBatch) -> Tensor:
        golden: Tensor = self.network(batch.source, batch.prompt_embeds, batch.factors)
        return golden

    @torch.no_grad()
    def measure(self, rows: np.ndarray, *, with_loss: bool = True) -> dict[str, float]:
        """Mean squared errors of the identity map and the averaged network, and its loss.

        Each process measures a share.
        """
        self.network.eval()
        own = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        size = self.order.part_size
        keys = [BatchRows(0, own[start : start + size].tolist()) for start in range(0, len(own), size)]
        sums = torch.zeros(5, dtype=torch.float64, device=self.accelerator.device)
        with self.average.applied():
            for batch in self.data.plain_reader.batches(keys, self.accelerator.device, self.settings.workers):
                target, golden = target_of(batch), self._golden(batch)
                sums[0] += (target - batch.source).double().square().sum()
                sums[1] += (target - golden.float()).double().square().sum()
                sums[2] += target.numel()
                if with_loss:
                    sums[3] += len(batch) * self.loss(golden, batch).double()
                    sums[4] += len(batch)
        identity, ours, count, loss, pairs = self.accelerator.reduce(sums, "sum").tolist()
        found = {
            "identity": identity / count,
            "mse": ours / count,
            "explained": 1 - ours / identity if identity else 0.0,
        }
        return found | {"loss": loss / pairs} if with_loss else found

    def _validate(self) -> None:
        rows = self.data.validation
        if not len(rows):
            return
        found = self.measure(rows)
        self._log({"step": self.progress.step, "validation": found})
        # A reward's loss may be below zero.
        limit = self.progress.best - abs(self.progress.best) * self.settings.validation.min_improvement
        if math.isnan(limit):
            limit = math.inf
        if not math.isfinite(found["loss"]):
            raise TrainError(
                f"validation at step {self.progress.step} is not finite; lower the learning rate"
            )
        if found["loss"] < limit:
            self.progress.best, self.progress.worse = found["loss"], 0
            self._write_checkpoint(BEST)
        else:
            self.progress.worse += 1

    def _last_measured(self) -> dict[str, float]:
        """Of the weights as they are: the last validation's, if it was of them."""
        for entry in reversed(self.progress.history):
            if "validation" in entry and entry["step"] == self.progress.step:
                found: dict[str, float] = entry["validation"]
                return found
        if len(self.data.validation):
            return self.measure(self.data.validation)
        return self.measure(self.data.train, with_loss=False)  # of all pairs, images would take hours

    def _write_checkpoint(self, name: str) -> None:
        with self.average.applied():
            weights = whole_weights(self.accelerator.unwrap_model(self.network))
        if self.accelerator.is_main_process:
            weights |= {name: weights[name].reshape(()) for name in self.scalars}
            checkpoint.write(self.settings.output / name, weights, self.config)

    def _save_state(self) -> None:
        network = self.accelerator.unwrap_model(self.network)
        tensors, groups = gather_state(network, self.optimizer.optimizer, self.average)
        if self.accelerator.is_main_process:
            content = {"identity": self._identity(), "groups": groups, "progress": vars(self.progress)}
            write_state(self.settings.output, self.progress.step, tensors, content)
        self.accelerator.wait_for_everyone()

    def _identity(self) -> dict[str, Any]:
        settings = self.settings.model_dump(mode="json", exclude=set(RESUMABLE) | {"data"})
        identity: dict[str, Any] = json.loads(  # as it will be read back, without tuples
            json.dumps(
                {"settings": settings, "data": self.data.pairs.info.digest, "network": self.config.to_dict()}
            )
        )
        return identity

    def _resume(self) -> None:
        folder = last_state(self.settings.output)
        if folder is None:
            return
        tensors, content = read_state(folder)
        found, own = content["identity"], self._identity()
        wrong = [line for part in ("settings", "network") for line in differences(found[part], own[part])]
        if found["data"] != own["data"]:
            wrong.append("data: other pairs than it began with")
        if wrong:
            raise TrainError(f"--resume: {folder} is of another run:\n  " + "\n  ".join(wrong))
        restore(
            self.accelerator.unwrap_model(self.network), self.optimizer.optimizer, self.average, tensors,
            content["groups"],
        )  # fmt: skip
        self.progress = Progress(**content["progress"])

    def _log(self, entry: dict[str, Any]) -> None:
        self.progress.history.append(entry)
        if self.accelerator.is_main_process:
            with (self.settings.output / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            self.report(entry)

    def _finish(self, seconds: float) -> dict[str, Any]:
        self._write_checkpoint(LAST)
        summary: dict[str, Any] = {
            "settings": self.settings.model_dump(mode="json"),
            "model": self.data.pairs.info.model,
            "revision": self.data.pairs.info.revision,
            "pairs": {
                "train": len(self.data.train),
                "validation": len(self.data.validation),
                "quarantined": self.data.quarantined,
            },
            "steps": self.progress.step,
            "seconds": round(seconds, 1),
            "best_validation_loss": self.progress.best if math.isfinite(self.progress.best) else None,
            "last": self._last_measured(),
            "history": self.progress.history,
        }
        if self.accelerator.is_main_process:
            device = self.accelerator.device
            summary["report"] = describe(self.settings.output / LAST, self.data, device)
            draw_curves(self.progress.history, self.settings.output / CURVES)
            with atomic_file(self.settings.output / RUN) as temporary:
                temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        self.accelerator.wait_for_everyone()
        return summary


def _require_folder(settings: TrainSettings) -> None:
    folder: Path = settings.output
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not settings.resume:
        raise TrainError(f"{folder} is not empty: go on with --resume, or give another --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainError(f"--output {folder}: cannot be written ({error})") from error
