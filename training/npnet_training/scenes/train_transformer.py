"""Train the denoiser by rectified flow (arXiv 2209.03003), its sigmas drawn as in arXiv 2403.03206.

Beside the velocity its blocks of two streams learn to tell what is where, which makes shapes come sooner, as
representation alignment does (REPA, arXiv 2410.06940), with the truth of the renders for a teacher. Matrices
of the blocks are trained by Muon, which took three quarters of AdamW's steps to the same loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from npnet_training.attention import attention_of_few
from npnet_training.scenes.networks import make_transformer
from npnet_training.shapes.averaged import AveragedRun
from npnet_training.shapes.data import rows_of
from npnet_training.shapes.train_autoencoder import Precision, Report, autocast

SHIFT = 0.6  # of the logit-normal sigmas: layout is decided in noise
# Sampling begins from pure noise, which a logit-normal draw hardly ever gives.
PURE_SHARE = 0.125
LAYOUT_WEIGHT = 0.5
DROPPED = 0.1  # share of prompts replaced by the empty one, for classifier-free guidance


@dataclass(frozen=True)
class Latents:
    """Scenes of one size.

    Args:
        latents: (N, 16, h, w), scaled.
        ids: (N, 16), tokens of their prompts.
        layouts: (N, 7, h, w), what is where.
    """

    latents: Tensor
    ids: Tensor
    layouts: Tensor


class TransformerTraining(AveragedRun):
    """A run of the denoiser's training.

    Args:
        parts: scenes by size; a step's batch is of one, drawn as often as it has scenes.
        empty: (16,), tokens of the empty prompt.
        encoder: of the tokens, T5.
        pooled: the other encoder of them, CLIP.
        batch: scenes a step.
        rate: highest learning rate, see `AveragedRun`, of Muon and AdamW.
        seed: of weights, order, sigmas and noise.
        report: called with stage, step and loss.
        precision: of the products; bf16 is faster where the processor has it.
    """

    decay_from = 0.6

    def __init__(
        self,
        parts: list[Latents],
        empty: Tensor,
        encoder: Any,
        pooled: Any,
        *,
        batch: int,
        rate: float,
        seed: int,
        report: Report,
        precision: Precision = "bf16",
    ) -> None:
        self.parts, self.empty, self.encoder, self.pooled, self.batch = parts, empty, encoder, pooled, batch
        self.device, self.precision = parts[0].latents.device, precision
        torch.manual_seed(seed)
        model = make_transformer().to(self.device)
        self._layout = nn.Linear(model.inner_dim, 4 * parts[0].layouts.shape[1]).to(self.device)
        super().__init__(model, rate=rate, seed=seed, report=report)
        self._states: list[Tensor] = []
        self.model.transformer_blocks[-1].register_forward_hook(
            lambda block, inputs, outputs: self._states.append(outputs[1])
        )

    @property
    def helper(self) -> nn.Module:
        """See `AveragedRun`: tells the layout of a packed token."""
        return self._layout

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """See `AveragedRun`."""
        named = dict(self.model.named_parameters())
        inner = {name for name, value in named.items() if value.dim() == 2 and "transformer_blocks" in name}
        rest = [value for name, value in named.items() if name not in inner]
        muon = torch.optim.Muon(
            [value for name, value in named.items() if name in inner], self.rate, weight_decay=0.01,
            adjust_lr_fn="match_rms_adamw",
        )  # fmt: skip
        return [muon, self.adamw([*rest, *self._layout.parameters()])]

    def loss(self, generator: torch.Generator) -> Tensor:
        """See `AveragedRun.loss`: squared errors of the velocity, noise less latents, and of the layout."""
        weights = torch.tensor([float(len(part.ids)) for part in self.parts])
        part = self.parts[int(torch.multinomial(weights, 1, generator=generator))]
        rows = rows_of(self.step, len(part.ids), self.batch, self.seed)
        clean, ids = part.latents[rows], part.ids[rows]
        dropped = (torch.rand(len(rows), 1, generator=generator) < DROPPED).to(self.device)
        ids = torch.where(dropped, self.empty, ids)
        sigma = torch.sigmoid(torch.randn(len(rows), generator=generator) + SHIFT)
        sigma[: round(PURE_SHARE * len(rows))] = 1.0
        sigma = sigma.to(self.device)
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        share = sigma.view(-1, 1, 1, 1)
        self._states.clear()
        with autocast(self.device, self.precision), attention_of_few(clean[0, 0].numel(), self.device):
            texts = embed(self.encoder, self.pooled, ids)
            predicted = velocity(self.model, (1 - share) * clean + share * noise, sigma, *texts).float()
            seen = self._layout(self._states.pop()).float()
        loss = (predicted - pack(noise - clean)).square().mean()
        return loss + LAYOUT_WEIGHT * (seen - pack(part.layouts[rows].float())).square().mean()


@torch.no_grad()
def embed(encoder: Any, pooled: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """States of the tokens, (B, 16, 96), and of the prompts, (B, 64), as FluxPipeline encodes them."""
    return encoder(ids).last_hidden_state, pooled(ids).pooler_output


def velocity(model: Any, noisy: Tensor, sigma: Tensor, states: Tensor, prompts: Tensor) -> Tensor:
    """What a FluxTransformer2DModel predicts of latents (B, C, h, w) at sigma (B,), packed."""
    from diffusers import FluxPipeline

    height, width = noisy.shape[2] // 2, noisy.shape[3] // 2
    places = FluxPipeline._prepare_latent_image_ids(len(noisy), height, width, noisy.device, noisy.dtype)
    return model(
        hidden_states=pack(noisy), timestep=sigma, encoder_hidden_states=states, pooled_projections=prompts,
        img_ids=places, txt_ids=torch.zeros(states.shape[1], 3, device=noisy.device),
    ).sample  # fmt: skip


def pack(latents: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h w / 4, 4 C), squares of two by two as FLUX packs them."""
    from diffusers import FluxPipeline

    batch, channels, height, width = latents.shape
    return FluxPipeline._pack_latents(latents, batch, channels, height, width)
