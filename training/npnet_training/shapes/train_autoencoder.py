"""Train the autoencoder (latent diffusion, arXiv 2112.10752, section 3.1; without a discriminator)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from npnet_training.shapes.data import Scenes
from npnet_training.shapes.networks import make_autoencoder

KL_WEIGHT = 1e-5
Report = Callable[[str, int, float], None]


def train_autoencoder(scenes: Scenes, steps: int, batch: int, rate: float, seed: int, report: Report) -> Any:
    """An autoencoder of the scenes, its `scaling_factor` set so that latents have unit variance.

    Args:
        scenes: to train on.
        steps: of AdamW, with a one-cycle learning rate.
        batch: images a step.
        rate: highest learning rate.
        seed: of weights, order and posterior samples.
        report: called with stage, step and loss.
    """
    torch.manual_seed(seed)
    vae = make_autoencoder().to(scenes.images.device)
    optimizer = torch.optim.AdamW(vae.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    for step, rows in zip(range(steps), scenes.batches(batch, seed), strict=False):
        images = scenes.images[rows]
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        loss = _distance(decoded, images) + KL_WEIGHT * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report("autoencoder", step, loss.item())
    vae.eval()
    vae.register_to_config(scaling_factor=round(1 / encode(vae, scenes.images[:2048]).std().item(), 4))
    return vae


def _distance(decoded: Tensor, images: Tensor) -> Tensor:
    """Pixels and edges: L1 of both and squared error of pixels."""
    # sharp rims are what tells shapes apart
    across = F.l1_loss(decoded.diff(dim=3), images.diff(dim=3))
    down = F.l1_loss(decoded.diff(dim=2), images.diff(dim=2))
    return F.l1_loss(decoded, images) + F.mse_loss(decoded, images) + across + down


@torch.no_grad()
def encode(vae: Any, images: Tensor, batch: int = 256) -> Tensor:
    """Means of the posterior, unscaled: (N, 4, 16, 16)."""
    means: list[Tensor] = [vae.encode(part).latent_dist.mean for part in images.split(batch)]
    return torch.cat(means)
