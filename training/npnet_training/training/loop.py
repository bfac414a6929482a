"""The training loop."""

from __future__ import annotations

import contextlib
import json
import math
import time
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from npnet_runtime.files import atomic_file
from npnet_runtime.weights import checkpoint
from npnet_training.errors import SettingsError, TrainError
from npnet_training.training.averaging import WeightAverage
from npnet_training.training.batch import TrainBatch
from npnet_training.training.collapse import judge
from npnet_training.training.data import TrainingData, open_data
from npnet_training.training.generator_lora import GeneratorLora
from npnet_training.training.losses import Loss
from npnet_training.training.measuring import golden_of, measure
from npnet_training.training.networks import (
    autocast_products,
    freeze,
    network_of,
    parameter_groups,
    require_own_precision,
    without_scalars,
)
from npnet_training.training.objectives import make_loss
from npnet_training.training.order import BatchOrder
from npnet_training.training.progress import Progress, Report, RunLog
from npnet_training.training.report import CURVES, describe, draw_curves, summarize
from npnet_training.training.schedule import learning_rate
from npnet_training.training.settings import TrainSettings
from npnet_training.training.state import (
    gather_state,
    identity_of,
    last_state,
    read_state,
    require_folder,
    require_same_run,
    restore,
    whole_weights,
    write_state,
)
from npnet_training.training.texts import made_for

BEST, LAST, RUN = "best.safetensors", "last.safetensors", "run.json"


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
        OSError: a file of the run cannot be written; the last training state is kept.
    """
    return Trainer(settings, report).run()


class Trainer:
    """A run in progress."""

    def __init__(self, settings: TrainSettings, report: Report) -> None:
        self.settings, self.report = settings, report
        require_own_precision(settings.precision)
        self.accelerator = Accelerator(mixed_precision="no")
        if settings.trains_lora and self.accelerator.distributed_type == DistributedType.FSDP:
            raise SettingsError(
                "--network.kind generator-lora: its weights are small, and lie within a model that is not "
                "sharded; leave out --use_fsdp"
            )
        torch.backends.cuda.matmul.allow_tf32 = settings.precision == "tf32"
        require_folder(settings.output, resume=settings.resume)
        self.data: TrainingData = open_data(settings, self.accelerator)
        self.loss: Loss = make_loss(settings, self.data.pairs.info, self.accelerator.device)
        pairs, texts = self.data.pairs, self.data.texts
        network: Any = network_of(settings, pairs, texts, self.loss, self.accelerator.device)
        self.made_for = made_for(pairs.info, texts)
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
            self.accelerator.process_index, settings.accumulation, pairs.groups, pairs.files,
            settings.stream,
        )  # fmt: skip
        self.total = settings.epochs * self.order.steps_per_epoch
        self.last = min(self.total, settings.max_steps or self.total)
        self.identity = identity_of(settings, self.data.pairs.info, self.config)
        self.progress = Progress()
        if settings.resume:
            self._resume()
        self.log: RunLog | None = None

    def run(self) -> dict[str, Any]:
        """All steps, validations and files."""
        began = time.perf_counter()
        with contextlib.ExitStack() as stack:
            if self.accelerator.is_main_process:
                self.log = RunLog(self.settings.output, self.progress, self.report)
                stack.callback(self.log.close)
            self._train(began)
        return self._finish(time.perf_counter() - began)

    def _train(self, began: float) -> None:
        settings, first = self.settings, self.progress.step
        every = settings.validation.every or self.order.steps_per_epoch
        batches = self.data.reader.batches(
            self.order.parts(first, self.last), self.accelerator.device, settings.workers
        )
        losses: list[float] = []
        while not self._ended():
            loss = self._step(self.progress.step, [next(batches) for _ in range(settings.accumulation)])
            if loss is not None:
                losses.append(loss)
            self.progress.step = step = self.progress.step + 1
            if losses and (step % settings.log_every == 0 or step == self.last):
                rate = (step - first) * settings.batch_size / (time.perf_counter() - began)
                self._log(
                    {"step": step, "loss": float(np.mean(losses)), "pairs_per_second": rate}
                    | {"learning_rate": self.optimizer.param_groups[0]["lr"]}
                )
                losses = []
            if step % every == 0 or step == self.last:
                self._validate()
            if step % settings.save_every == 0 or self._ended():
                self._save_state()

    def _ended(self) -> bool:
        """At the last step, or stopped early."""
        patience = self.settings.validation.patience
        stopped = patience is not None and self.progress.worse >= patience
        return stopped or self.progress.step >= self.last

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
        return golden_of(self.network, batch)

    def _measure(self, rows: np.ndarray, *, with_loss: bool = True) -> dict[str, float]:
        """`measure` of the averaged network."""
        parts, workers = self.order.parts_of(rows), self.settings.workers
        batches = self.data.plain_reader.batches(parts, self.accelerator.device, workers)
        with self.average.applied():
            return measure(self.accelerator, self.network, batches, self.loss if with_loss else None)

    def _validate(self) -> None:
        if not len(self.data.validation):
            return
        found = self._measure(self.data.validation)
        self._log({"step": self.progress.step, "validation": found})
        if not math.isfinite(found["loss"]):
            raise TrainError(
                f"validation at step {self.progress.step} is not finite; lower the learning rate"
            )
        better = self.progress.judge(found["loss"], self.settings.validation.min_improvement)
        problems = judge(found, self.progress, allowed=self.settings.allow_collapse)
        if problems:
            self._log({"step": self.progress.step, "collapsed": problems})
        if better:
            self._write_checkpoint(BEST)

    def _last_measured(self) -> dict[str, float]:
        """Of the weights as they are: the last validation's, if it was of them."""
        for entry in reversed(self.progress.history):
            if "validation" in entry and entry["step"] == self.progress.step:
                found: dict[str, float] = entry["validation"]
                return found
        if len(self.data.validation):
            return self._measure(self.data.validation)
        return self._measure(self.data.train, with_loss=False)  # of all pairs, images would take hours

    def _write_checkpoint(self, name: str) -> None:
        with self.average.applied():
            weights = whole_weights(self.accelerator.unwrap_model(self.network))
        if self.accelerator.is_main_process:
            weights |= {name: weights[name].reshape(()) for name in self.scalars}
            inner: Any = self.accelerator.unwrap_model(self.network)
            path = self.settings.output / name
            if isinstance(inner, GeneratorLora):
                inner.write(path, weights)
            else:
                checkpoint.write(path, weights, self.config, self.made_for)

    def _save_state(self) -> None:
        network = self.accelerator.unwrap_model(self.network)
        tensors, groups = gather_state(network, self.optimizer.optimizer, self.average)
        if self.accelerator.is_main_process:
            content = {"identity": self.identity, "groups": groups, "progress": vars(self.progress)}
            write_state(self.settings.output, self.progress.step, tensors, content)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        folder = last_state(self.settings.output)
        if folder is None:
            return
        tensors, content = read_state(folder)
        require_same_run(folder, content["identity"], self.identity)
        restore(
            self.accelerator.unwrap_model(self.network), self.optimizer.optimizer, self.average, tensors,
            content["groups"],
        )  # fmt: skip
        self.progress = Progress(**content["progress"])

    def _log(self, entry: dict[str, Any]) -> None:
        self.progress.history.append(entry)
        if self.log is not None:
            self.log.write(entry)

    def _described(self) -> dict[str, Any]:
        inner: Any = self.accelerator.unwrap_model(self.network)
        device = self.accelerator.device
        if isinstance(inner, GeneratorLora):
            with self.average.applied():
                return describe(inner, self.data, device)
        return describe(checkpoint.read(self.settings.output / LAST).network().to(device), self.data, device)

    def _finish(self, seconds: float) -> dict[str, Any]:
        self._write_checkpoint(LAST)
        summary = summarize(self.settings, self.data, self.progress, self._last_measured(), seconds)
        if self.accelerator.is_main_process:
            summary["report"] = self._described()
            draw_curves(self.progress.history, self.settings.output / CURVES)
            with atomic_file(self.settings.output / RUN) as temporary:
                temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        self.accelerator.wait_for_everyone()
        return summary
