"""Train the denoiser, on latents and embeddings computed beforehand."""

from __future__ import annotations

import torch
from torch import Tensor

from npnet_training.shapes.averaged import AveragedRun
from npnet_training.shapes.data import rows_of
from npnet_training.shapes.networks import make_scheduler, make_unet
from npnet_training.shapes.train_autoencoder import Report

# The forward process never gives pure noise, as alpha_T is not 0, but sampling begins from it.
PURE_SHARE, PURE_FROM = 0.125, 700
# Timesteps are drawn as 1000 u ** 0.6: a shape is still told apart at the noise of timestep 200, so that
# little is to be learned below it.
TIME_POWER = 0.6
DROPPED = 0.1  # share of prompts replaced by the empty one, for classifier-free guidance


class UNetTraining(AveragedRun):
    """A run of the denoiser's training.

    Args:
        latents: (N, 4, 16, 16), scaled.
        ids: (N,) row of each scene's prompt in `embeds`.
        embeds: (P, 16, 64), embeddings of the distinct prompts.
        empty: (16, 64), of the empty prompt.
        batch: scenes a step.
        rate: highest learning rate, see `AveragedRun`.
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
        self.batch, self.device, self.variance = min(batch, len(latents)), latents.device, latents.var()
        torch.manual_seed(seed)
        super().__init__(make_unet().to(self.device), rate=rate, seed=seed, report=report)
        self.kept = make_scheduler().alphas_cumprod.to(self.device)

    def loss(self, generator: torch.Generator) -> Tensor:
        """See `AveragedRun.loss`: of v, and where the latents are pure noise, of what they predict."""
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
        predicted = self.model(noisy, time, text).sample
        # v = alpha eps - sigma x0 (arXiv 2202.00512, appendix D), so x0 = alpha x_t - sigma v
        found = alpha[:pure] * noisy[:pure] - sigma[:pure] * predicted[:pure]
        error = predicted[pure:] - (alpha * noise - sigma * clean)[pure:]
        squares = error.square().sum() + (found - clean[:pure]).square().sum() / self.variance
        return squares / clean.numel()
