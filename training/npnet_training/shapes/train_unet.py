"""Train the denoiser, on latents and embeddings computed beforehand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.files import atomic_file
from npnet_training.shapes.data import rows_of
from npnet_training.shapes.networks import make_scheduler, make_unet
from npnet_training.shapes.train_autoencoder import Report

# The forward process never gives pure noise, as alpha_T is not 0, but sampling begins from it.
PURE_SHARE, PURE_FROM = 0.125, 700
# Timesteps are drawn as 1000 u ** 0.6: a shape is still told apart at the noise of timestep 200, so that
# little is to be learned below it.
TIME_POWER = 0.6
DROPPED = 0.1  # share of prompts replaced by the empty one, for classifier-free guidance
AVERAGE = 0.998
WARM_UP, DECAY_FROM = 200, 0.75  # steps, and share of all steps


class UNetTraining:
    """A run of the denoiser's training, which can be left and taken up again at any step.

    Args:
        latents: (N, 4, 16, 16), scaled.
        ids: (N,) row of each scene's prompt in `embeds`.
        embeds: (P, 16, 64), embeddings of the distinct prompts.
        empty: (16, 64), of the empty prompt.
        batch: scenes a step.
        rate: highest learning rate of AdamW: after a warm-up it stays there for three quarters of the steps,
            then falls linearly to zero.
        seed: of weights, order, timesteps and noise.
        report: called with stage, step and loss.
    """

    def __init__(
        self,
        latents: Tensor,
        ids: Tensor,
        embeds: Tensor,
        empty: Tensor,
        *,
        batch: int,
        rate: float,
        seed: int,
        report: Report,
    ) -> None:
        self.latents, self.ids, self.embeds, self.empty = latents, ids, embeds, empty
        self.batch, self.rate, self.seed, self.report = min(batch, len(latents)), rate, seed, report
        self.device, self.variance = latents.device, latents.var()
        torch.manual_seed(seed)
        self.unet = make_unet().to(self.device)
        self.average = copy.deepcopy(self.unet).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-3)
        self.kept = make_scheduler().alphas_cumprod.to(self.device)
        self.step = 0

    def run(self, steps: int, save_every: int) -> Iterator[tuple[int, Any]]:
        """Averaged weights (EMA) after every `save_every` steps, and after the last."""
        while self.step < steps:
            self._train(min(1.0, (self.step + 1) / WARM_UP, (1 - self.step / steps) / (1 - DECAY_FROM)))
            self.step += 1
            if self.step % save_every == 0 or self.step == steps:
                yield self.step, self.average

    def _train(self, rate_share: float) -> None:
        # Seeded by the step, so that a run taken up again draws what it would have drawn.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        rows = rows_of(self.step, len(self.latents), self.batch, self.seed)
        clean, text = self.latents[rows], self.embeds[self.ids[rows]]
        dropped = (torch.rand(len(rows), 1, 1, generator=generator) < DROPPED).to(self.device)
        text = torch.where(dropped, self.empty, text)
        pure = round(PURE_SHARE * len(rows))
        time = (len(self.kept) * torch.rand(len(rows), generator=generator) ** TIME_POWER).long()
        time[:pure] = torch.randint(PURE_FROM, len(self.kept), (pure,), generator=generator)
        time = time.to(self.device)
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        alpha, sigma = (part.sqrt().view(-1, 1, 1, 1) for part in (self.kept[time], 1 - self.kept[time]))
        noisy = alpha * clean + sigma * noise
        noisy[:pure] = noise[:pure]
        predicted = self.unet(noisy, time, text).sample
        # v = alpha eps - sigma x0 (arXiv 2202.00512, appendix D), so x0 = alpha x_t - sigma v
        found = alpha[:pure] * noisy[:pure] - sigma[:pure] * predicted[:pure]
        error = predicted[pure:] - (alpha * noise - sigma * clean)[pure:]
        squares = error.square().sum() + (found - clean[:pure]).square().sum() / self.variance
        loss = squares / clean.numel()
        for group in self.optimizer.param_groups:
            group["lr"] = rate_share * self.rate
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        decay = min(AVERAGE, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.unet.parameters()), 1 - decay)
        self.report("denoiser", self.step, loss.item())

    def save(self, path: Path) -> None:
        """Write the state; whole or not at all."""
        state = {
            "step": self.step,
            "unet": self.unet.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_file(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Go on where a state was written."""
        state = torch.load(path, weights_only=True, map_location=self.device)
        self.unet.load_state_dict(state["unet"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
