"""Train the autoencoder (latent diffusion, arXiv 2112.10752, section 3.1; without a discriminator)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npnet_training.shapes.data import rows_of

KL_WEIGHT = 1e-5
COLOURED = 0.3  # of the strongest over the weakest channel, in [-1, 1]
# Of the deviation of the latents, at most: what the decoder learns to tolerate, as sampling is not exact.
NOISE = 0.25
CROP = 32  # pixels a side
COLOURED_PIXEL = 0.5  # surely of a thing
Precision = Literal["bf16", "fp32"]


class Report(Protocol):
    """Called with stage, step and loss."""

    def __call__(self, stage: str, step: int, loss: float) -> None:
        """One step is done."""


def train_autoencoder(
    make: Callable[[], Any],
    images: Tensor,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    report: Report,
    *,
    kl_weight: float = KL_WEIGHT,
    things: float = 0.0,
    crops: int = 0,
    precision: Precision = "fp32",
    warm_up: float = 0.3,
) -> Any:
    """An autoencoder of images, its `scaling_factor` set so that latents have unit variance.

    Args:
        make: an untrained one.
        images: (N, 3, H, W) in [-1, 1].
        steps: of AdamW, with a one-cycle learning rate.
        batch: images a step.
        rate: highest learning rate.
        seed: of weights, order and posterior samples.
        report: of the progress.
        kl_weight: of the divergence of the latents from N(0, 1), which is summed over them.
        things: how much more pixels of colour and their neighbours count, where they are few.
        crops: the first steps, which are on 32x32 pixels of each image, about a thing in it: a quarter of the
            work a step, most of which is of things.
        precision: of the products; bf16 is faster where the processor has it.
        warm_up: share of the steps in which the learning rate rises.
    """
    torch.manual_seed(seed)
    vae = make().to(images.device)
    optimizer = _Optimizer(vae.parameters(), rate, steps, warm_up)
    for step in range(steps):
        part = images[rows_of(step, len(images), batch, seed)]
        weight = kl_weight
        if step < crops:
            weight *= part[0, 0].numel() / CROP**2  # the divergence is summed, the distance a mean
            part = crop(part, torch.Generator().manual_seed(seed * 1_000_003 + step))
        with autocast(part.device, precision):
            posterior = vae.encode(part).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        loss = _distance(decoded, part, things) + weight * posterior.kl().float().mean()
        optimizer.step(loss)
        report("autoencoder", step, loss.item())
    vae.eval()
    vae.register_to_config(scaling_factor=round(1 / encode(vae, images[:2048]).std().item(), 4))
    return vae


def train_decoder(
    vae: Any,
    parts: Sequence[tuple[Tensor, Tensor]],
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    report: Report,
    *,
    things: float = 0.0,
    precision: Precision = "fp32",
) -> None:
    """Go on with the decoder alone, in place: the latents, and what a denoiser knows of them, stay.

    Args:
        vae: the autoencoder.
        parts: of one size each, in turns: images (N, 3, H, W) in [-1, 1], and their latents (N, C, h, w),
            unscaled.
        steps: of AdamW, with a one-cycle learning rate.
        batch: images a step.
        rate: highest learning rate.
        seed: of order and noise.
        report: of the progress.
        things: as in `train_autoencoder`.
        precision: as there.
    """
    torch.manual_seed(seed)
    after = [] if vae.post_quant_conv is None else vae.post_quant_conv.parameters()
    optimizer = _Optimizer([*after, *vae.decoder.parameters()], rate, steps)
    deviation = parts[0][1].std()
    for step in range(steps):
        images, latents = parts[step % len(parts)]
        rows = rows_of(step // len(parts), len(latents), batch, seed + 1)
        clean = latents[rows]
        level = NOISE * deviation * torch.rand(len(rows), 1, 1, 1, device=clean.device)
        with autocast(clean.device, precision):
            decoded = vae.decode(clean + level * torch.randn_like(clean)).sample.float()
        loss = _distance(decoded, images[rows], things)
        optimizer.step(loss)
        report("decoder", step, loss.item())


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Products in bfloat16, or nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """A window of each image about a random pixel of colour, (N, 3, 32, 32)."""
    chroma = images.amax(1) - images.amin(1)
    found = []
    for image, colour in zip(images, chroma, strict=True):
        places = (colour > COLOURED_PIXEL).nonzero()
        middle = places[torch.randint(len(places), (1,), generator=generator)[0]]
        aside = torch.randint(-12, 13, (2,), generator=generator)
        most = torch.tensor(image.shape[1:]) - CROP
        row, column = (middle.cpu() - CROP // 2 + aside).clamp(min=0).minimum(most).tolist()
        found.append(image[:, row : row + CROP, column : column + CROP])
    return torch.stack(found)


class _Optimizer:
    """AdamW with a one-cycle learning rate and clipped gradients."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], rate: float, steps: int, warm_up: float = 0.3
    ) -> None:
        self._parameters = list(parameters)
        self._adamw = torch.optim.AdamW(self._parameters, rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR
        self._rate = schedule(self._adamw, rate, total_steps=steps + 1, pct_start=warm_up)

    def step(self, loss: Tensor) -> None:
        self._adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._adamw.step()
        self._rate.step()


def _distance(decoded: Tensor, images: Tensor, things: float = 0.0) -> Tensor:
    """Pixels and edges: L1 of both and squared error of pixels.

    With so much more weight where there is colour: without it, small things stay grey for long.
    """
    chroma = images.amax(1, keepdim=True) - images.amin(1, keepdim=True)
    weight = 1 + things * F.max_pool2d((chroma > COLOURED).float(), 3, 1, 1)
    weight = weight / weight.mean()
    # sharp rims are what tells shapes apart
    across = ((decoded.diff(dim=3) - images.diff(dim=3)).abs() * weight[..., 1:]).mean()
    down = ((decoded.diff(dim=2) - images.diff(dim=2)).abs() * weight[..., 1:, :]).mean()
    error = decoded - images
    return (error.abs() * weight).mean() + (error.square() * weight).mean() + across + down


@torch.no_grad()
def encode(vae: Any, images: Tensor, batch: int = 256) -> Tensor:
    """Means of the posterior, unscaled: (N, C, h, w)."""
    means: list[Tensor] = [vae.encode(part).latent_dist.mean for part in images.split(batch)]
    return torch.cat(means)
