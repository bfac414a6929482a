"""A run of a denoiser's training with averaged weights, which can be left and taken up again at any step."""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.files import atomic_file
from npnet_training.shapes.train_autoencoder import Report

AVERAGE = 0.998
WARM_UP = 200  # steps


class AveragedRun(abc.ABC):
    """An optimiser, AdamW unless a subclass says otherwise, and an average (EMA) of the weights.

    Args:
        model: to train, on its device.
        rate: highest learning rate: after a warm-up it stays there for the share `decay_from` of all steps,
            then falls linearly to zero.
        seed: of all that a step draws.
        report: called with stage, step and loss.
        warm_up: steps.
    """

    stage = "denoiser"
    decay_from = 0.75

    def __init__(self, model: Any, *, rate: float, seed: int, report: Report, warm_up: int = WARM_UP) -> None:
        self.model, self.rate, self.seed, self.report, self.warm_up = model, rate, seed, report, warm_up
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizers = self.make_optimizers()
        self.step = 0

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """Of all that is trained."""
        return [self.adamw(self.model.parameters())]

    def adamw(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of most parameters."""
        return torch.optim.AdamW(parameters, self.rate, betas=(0.9, 0.99), weight_decay=1e-3)

    @property
    def helper(self) -> torch.nn.Module | None:
        """What is trained beside the model and thrown away in the end."""
        return None

    @abc.abstractmethod
    def loss(self, generator: torch.Generator) -> Tensor:
        """Of the step that `self.step` counts; everything random is drawn from the generator."""

    def run(self, steps: int, save_every: int) -> Iterator[tuple[int, Any]]:
        """Averaged weights after every `save_every` steps, and after the last."""
        while self.step < steps:
            self._train(
                min(1.0, (self.step + 1) / self.warm_up, (1 - self.step / steps) / (1 - self.decay_from))
            )
            self.step += 1
            if self.step % save_every == 0 or self.step == steps:
                yield self.step, self.average

    def _train(self, rate_share: float) -> None:
        # Seeded by the step, so that a run taken up again draws what it would have drawn.
        loss = self.loss(torch.Generator().manual_seed(self.seed * 1_000_003 + self.step))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate_share * self.rate
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.report(self.stage, self.step, loss.item())

    def save(self, path: Path) -> None:
        """Write the state; whole or not at all."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "helper": {} if self.helper is None else self.helper.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with atomic_file(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Go on where a state was written."""
        state = torch.load(path, weights_only=True, map_location=next(self.model.parameters()).device)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        if self.helper is not None:
            self.helper.load_state_dict(state["helper"])
        for optimizer, found in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(found)
        self.step = state["step"]
