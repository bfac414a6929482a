"""Reward fine-tuning through the pipeline's own call (HyperNoise, arXiv 2508.09968; ReNO, arXiv 2406.04312).

HyperNoise maximises the reward of the image of x_T + f(x_T) less half the squared norm of the change f,
which bounds the Kullback-Leibler divergence of the changed noise from N(0, I) while f is a contraction. Its
code takes the mean over the entries for the norm, which this follows, so that a weight means the same for
every size of noise. ReNO optimises single noises and holds their norm instead. Neither keeps images of
different seeds apart; the anchor, which is this project's, does: it holds an image's coarse colours to those
of the image that the unchanged noise gives.

A pair's target is not used, only its source and prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from npnet_training.errors import RewardError, SettingsError
from npnet_training.rewards import Reward
from npnet_training.training.batch import TrainBatch
from npnet_training.training.front import drawn
from npnet_training.training.generator import FrozenGenerator
from npnet_training.training.loss_settings import RewardLossSettings

PENALTY_WEIGHTS = {"l2": 1.0, "norm": 0.01}


class RewardLoss:
    """Penalty of the noise less the weighted rewards of its image, averaged over the batch.

    Args:
        generators: one for each model that makes images, of one latent space.
        rewards: by name.
        settings: see there.

    Raises:
        SettingsError: no reward.
    """

    def __init__(
        self,
        generators: Sequence[FrozenGenerator],
        rewards: Mapping[str, Reward],
        settings: RewardLossSettings,
    ) -> None:
        if not rewards:
            raise SettingsError("--loss reward: expected at least one reward; add --reward.names NAME")
        self.generators, self.of_models = generators, settings.of_models
        self.rewards = rewards
        self.weights = settings.weights or (1.0,) * len(rewards)
        self.penalty = {"l2": change_penalty, "norm": norm_penalty}[settings.penalty]
        weight = settings.penalty_weight
        self.penalty_weight = PENALTY_WEIGHTS[settings.penalty] if weight is None else weight
        self.anchor_weight, self.anchor_cells = settings.anchor_weight, settings.anchor_cells

    def __call__(self, golden: Tensor, batch: TrainBatch) -> Tensor:
        """A scalar for golden noise (B, C, H, W) and its batch.

        Raises:
            RewardError: a reward gives other than a number for each image, or no gradient.
        """
        chosen = [drawn(self.generators, batch.seeds)] if self.of_models == "drawn" else self.generators
        loss = self.penalty_weight * self.penalty(golden.float(), batch.source).mean()
        for generator in chosen:
            loss = loss + self._of_images(generator, golden, batch) / len(chosen)
        return loss

    def _of_images(self, generator: FrozenGenerator, golden: Tensor, batch: TrainBatch) -> Tensor:
        """Anchor less rewards, of one model's images."""
        images = generator.render(golden, batch.prompts, seeds=batch.seeds)
        loss = torch.zeros((), device=golden.device)
        if self.anchor_weight:
            with torch.no_grad():
                plain = generator.render(batch.source, batch.prompts, seeds=batch.seeds)
            loss = loss + self.anchor_weight * anchor_penalty(images, plain, self.anchor_cells).mean()
        for weight, (name, reward) in zip(self.weights, self.rewards.items(), strict=True):
            values = reward.reward(images, batch.prompts)
            if values.shape != (len(batch),):
                raise RewardError(
                    f"the reward {name} must give {len(batch)} numbers for as many images, "
                    f"given a tensor of shape {tuple(values.shape)}"
                )
            if images.requires_grad and not values.requires_grad:
                raise RewardError(
                    f"the reward {name} has no gradient in the images; compute it from them with "
                    "differentiable operations, without torch.no_grad and detach"
                )
            loss = loss - weight * values.float().mean()
        return loss


def change_penalty(golden: Tensor, source: Tensor) -> Tensor:
    """(B,) half the mean square of the change from (B, C, H, W) source noise."""
    return 0.5 * (golden - source).square().flatten(1).mean(1)


def anchor_penalty(images: Tensor, plain: Tensor, cells: int) -> Tensor:
    """(B,) mean absolute difference of (B, 3, H, W) images averaged over cells x cells areas.

    Absolute, not squared: a few areas may change all they need to for the reward, while the others stay.
    """
    return F.adaptive_avg_pool2d(images - plain, cells).abs().flatten(1).mean(1)


def norm_penalty(golden: Tensor, source: Tensor) -> Tensor:
    """(B,) negative log-likelihood of the norm of (B, C, H, W) noise, a chi variable, above its least.

    As in ReNO: norm^2 / 2 - (d - 1) log(norm) for d entries, least at norm^2 = d - 1.
    """
    norm = torch.linalg.vector_norm(golden.flatten(1), dim=1)
    free = source[0].numel() - 1
    return 0.5 * norm.square() - free * norm.log() - 0.5 * free * (1 - math.log(free))
