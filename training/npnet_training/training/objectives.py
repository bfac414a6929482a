"""The loss that a run's settings ask for."""

from __future__ import annotations

import torch

from npnet_training.rewards import load_reward
from npnet_training.training.front import generators_of
from npnet_training.training.generator import FrozenGenerator
from npnet_training.training.image_loss import ImageLoss
from npnet_training.training.losses import Loss, cosine, mse
from npnet_training.training.reward_loss import RewardLoss
from npnet_training.training.settings import TrainSettings
from npnet_training.training.source import SourceInfo


def make_loss(settings: TrainSettings, info: SourceInfo, device: torch.device) -> Loss:
    """The loss of `settings.loss`; those that make images load the dataset's model.

    Args:
        settings: of the run.
        info: of its dataset.
        device: where the network is trained.

    Raises:
        ModelError: the model cannot be loaded.
        DatasetError: it is not the one that the pairs were collected with.
        SettingsError: several models that do not go together.
        RewardError: a reward is unknown, or cannot be loaded.
    """
    if settings.loss == "image":
        generator = FrozenGenerator.load(info, settings.image, device, offline=settings.offline)
        return ImageLoss(generator, settings.image)
    if settings.loss == "reward":
        rewards = {
            name: load_reward(name, device=device, offline=settings.offline) for name in settings.reward.names
        }
        generators = generators_of(settings, info, device)
        return RewardLoss(generators, rewards, settings.reward)
    return {"mse": mse, "cosine": cosine}[settings.loss]
