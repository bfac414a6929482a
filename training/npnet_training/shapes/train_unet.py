"""Train the denoiser, on latents and embeddings computed beforehand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from npnet_training.shapes.data import Batches
from npnet_training.shapes.networks import make_scheduler, make_unet
from npnet_training.shapes.train_autoencoder import Report

PURE_SHARE, PURE_FROM = 0.4, 700
DROPPED = 0.1  # share of prompts replaced by the empty one, for classifier-free guidance
AVERAGE = 0.995


def train_unet(
    latents: Tensor,
    ids: Tensor,
    embeds: Tensor,
    empty: Tensor,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    save_every: int,
    report: Report,
) -> Iterator[tuple[int, Any]]:
    """Averaged weights (EMA 0.995) after every `save_every` steps, and after the last.

    40 % of each batch is pure noise at a late timestep with the loss of the clean latents (as x0 prediction):
    that is what sampling begins from, but not what the forward process gives where alpha_T is not 0.

    Args:
        latents: (N, 4, 16, 16), scaled.
        ids: (N,) row of each scene's prompt in `embeds`.
        embeds: (prompts, 16, 64).
        empty: (16, 64), embedding of the empty prompt.
        steps: of AdamW, with a one-cycle learning rate.
        batch: scenes a step.
        rate: highest learning rate.
        seed: of weights, order, timesteps and noise.
        save_every: steps between two results.
        report: called with stage, step and loss.
    """
    torch.manual_seed(seed)
    device = latents.device
    unet = make_unet().to(device)
    average = copy.deepcopy(unet).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.1)
    kept = make_scheduler().alphas_cumprod.to(device)
    variance = latents.var()
    pure = round(PURE_SHARE * min(batch, len(latents)))
    for step, rows in zip(range(steps), Batches(len(latents), batch, seed), strict=False):
        clean, text = latents[rows], embeds[ids[rows]]
        text = torch.where(torch.rand(len(rows), 1, 1, device=device) < DROPPED, empty, text)
        time = torch.randint(0, len(kept), (len(rows),), device=device)
        time[:pure] = torch.randint(PURE_FROM, len(kept), (pure,), device=device)
        alpha, sigma = (part.sqrt().view(-1, 1, 1, 1) for part in (kept[time], 1 - kept[time]))
        noise = torch.randn_like(clean)
        noisy = alpha * clean + sigma * noise
        noisy[:pure] = noise[:pure]
        predicted = unet(noisy, time, text).sample
        # v = alpha eps - sigma x0 (arXiv 2202.00512, appendix D), so x0 = alpha x_t - sigma v
        found = alpha[:pure] * noisy[:pure] - sigma[:pure] * predicted[:pure]
        error = predicted[pure:] - (alpha * noise - sigma * clean)[pure:]
        loss = (error.square().sum() + (found - clean[:pure]).square().sum() / variance) / clean.numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            decay = min(AVERAGE, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)
        report("denoiser", step, loss.item())
        if (step + 1) % save_every == 0 or step + 1 == steps:
            yield step + 1, average
