"""Image-space loss: golden noise is worth what its image is (NoiseRefine, arXiv 2412.03895).

NoiseRefine brings the unguided image of refined noise to the guided image of the noise itself. Here the
reference is by default the image of the pair's target noise, by the same sampler, since that noise was
selected for its image; `reference="source"` with a `reference_guidance` is theirs. They train a LoRA of the
denoiser by an approximate gradient (multistep score distillation); here the network is the run's own, and the
gradient is exact through all steps, or through the last `gradient_steps`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from npnet_training.training.batch import TrainBatch
from npnet_training.training.generator import FrozenGenerator
from npnet_training.training.loss_settings import ImageLossSettings
from npnet_training.training.losses import target_of


class ImageLoss:
    """Mean squared difference of two images of a prompt, one from golden noise, one from a reference noise.

    Args:
        generator: of the dataset's model.
        settings: see there.
    """

    def __init__(self, generator: FrozenGenerator, settings: ImageLossSettings) -> None:
        self.generator = generator
        self.settings = settings

    def __call__(self, golden: Tensor, batch: TrainBatch) -> Tensor:
        """A scalar for golden noise (B, C, H, W) and its batch.

        Raises:
            DatasetError: the reference is the target, and the batch has none.
        """
        settings = self.settings
        output: Literal["images", "latents"] = "latents" if settings.space == "latents" else "images"
        reference = target_of(batch) if settings.reference == "target" else batch.source
        with torch.no_grad():
            wanted = self.generator.render(
                reference, batch.prompts, output=output, seeds=batch.seeds,
                steps=settings.reference_steps, guidance=settings.reference_guidance,
            )  # fmt: skip
        found = self.generator.render(golden, batch.prompts, output=output, seeds=batch.seeds)
        loss = F.mse_loss(found, wanted)
        if settings.noise_weight:
            loss = loss + settings.noise_weight * F.mse_loss(golden.float(), reference)
        return loss
