"""The third kind of network: a LoRA on the dataset's own model that predicts the change of the noise.

As in HyperNoise (arXiv 2508.09968), whose code has low-rank weights in every linear and convolutional layer,
and of the last layer these alone; one evaluation without guidance at the noisiest timestep. The images that
reward it are made by the same denoiser without the LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from npnet_runtime.errors import CheckpointError
from npnet_runtime.integrations.diffusers.adapter import (
    adaptable_layers,
    add_adapter,
    denoiser_of,
    predicted_change,
    watching_last,
)
from npnet_runtime.integrations.diffusers.latent_space import latent_space_of
from npnet_runtime.integrations.diffusers.lora_file import LoraConfig, read_lora, write_lora
from npnet_runtime.integrations.diffusers.steering import FEW
from npnet_training.attention import attention_of_few
from npnet_training.errors import ModelError, SettingsError, TrainError
from npnet_training.training.generator import FrozenGenerator
from npnet_training.training.losses import Loss
from npnet_training.training.settings import TrainSettings
from npnet_training.training.source import SourceInfo

ATTENTION = (
    "to_q",
    "to_k",
    "to_v",
    "to_out",
    "to_qkv",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)


class GeneratorLora(nn.Module):
    """Golden noise of noise and prompts, by a LoRA in a generator's denoiser.

    Its parameters are those of the LoRA alone; they begin with no change at all.

    Args:
        generator: whose denoiser is changed, where nothing sees it but this module.
        model: its name.
        rank: of the LoRA.
        targets: `all` layers, or those of `attention` and the last.
        seed: of the first weights.
    """

    def __init__(
        self, generator: FrozenGenerator, model: str, rank: int, targets: str = "all", seed: int = 0
    ) -> None:
        super().__init__()
        pipe = generator.denoiser.pipe
        self.generator = generator
        module = denoiser_of(pipe)
        timestep = noisiest(generator)
        with watching_last(module) as last, torch.no_grad():
            shape = (1, *generator.denoiser.latent_shape)
            noise = torch.zeros(shape, device=generator.denoiser.device)
            generator.denoiser.steered.output(noise, timestep, **self._arguments([""], shape))
            final = last()
        layers = adaptable_layers(module)
        if targets == "attention":
            layers = [name for name in layers if name == final or set(name.split(".")) & {*ATTENTION}]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.adapter = add_adapter(module, layers, rank, final)
        weights = self.adapter.weights
        self.names = [*weights]
        self.factors = nn.ParameterList(weights.values())
        space = latent_space_of(pipe)
        self.config = LoraConfig(
            model, "unet" if getattr(pipe, "unet", None) is module else "transformer", type(module).__name__,
            shape[1], rank, final, float(timestep), None if space is None else space.to_dict(),
        )  # fmt: skip

    def forward(self, source: Tensor, prompts: Sequence[str]) -> Tensor:
        """Golden noise (B, C, H, W) float32 of source noise and its B prompts."""
        arguments = self._arguments(prompts, tuple(source.shape))
        timestep = torch.tensor(self.config.timestep, device=source.device)

        def change(noise: Tensor) -> Tensor:
            steered = self.generator.denoiser.steered
            recomputed = self.generator.settings.checkpointing
            with attention_of_few(noise[0, 0].numel(), noise.device, recomputed=recomputed):
                return predicted_change(self.adapter, steered, noise, timestep, arguments)

        if self.generator.settings.checkpointing and torch.is_grad_enabled():
            # Kept until the images have their gradients, its activations would add to theirs.
            found: Tensor = checkpoint(change, source, use_reentrant=False)
            return source + found
        return source + change(source)

    def write(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the LoRA with weights by the names of this module's state.

        Raises:
            CheckpointError: it cannot be written.
        """
        named = {name: weights[f"factors.{number}"] for number, name in enumerate(self.names)}
        write_lora(path, named, self.config)

    def load(self, path: str) -> None:
        """Begin with the weights of another LoRA.

        Raises:
            TrainError: there is none, or one for other layers or of another rank.
        """
        try:
            _, found, _ = read_lora(path)
        except CheckpointError as error:
            raise TrainError(f"--start-from: {error}") from error
        own = dict(zip(self.names, self.factors, strict=True))
        shapes = {name: tuple(weight.shape) for name, weight in own.items()}
        if shapes != {name: tuple(weight.shape) for name, weight in found.items()}:
            raise TrainError(
                f"--start-from {path}: expected a LoRA of rank {self.config.rank} for "
                f"{self.config.component_class}, given one of other layers or another rank"
            )
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(found[name])

    def _arguments(self, prompts: Sequence[str], shape: tuple[int, ...]) -> dict[str, Any]:
        denoiser = self.generator.denoiser
        conditioning = self.generator.encode(prompts)
        return {**denoiser.call_arguments(conditioning, 1.0, shape), **FEW}


def noisiest(generator: FrozenGenerator) -> Tensor:
    """The timestep () of pure noise: of flows and SCM the first of their call, elsewhere training's last."""
    denoiser = generator.denoiser
    try:
        if not denoiser.schedule.set_by_pipeline:
            return torch.tensor(float(denoiser.pipe.scheduler.config.num_train_timesteps - 1))
    except ModelError:
        pass  # of noise levels that nobody knows, as SCM's
    noise = torch.zeros(1, *denoiser.latent_shape)
    arguments = denoiser.call_arguments(denoiser.empty, 1.0, noise.shape)
    with torch.no_grad():
        return denoiser.steered.timesteps(noise, **arguments, **FEW)[0].float().cpu()


def lora_for(settings: TrainSettings, info: SourceInfo, loss: Loss, device: torch.device) -> GeneratorLora:
    """The LoRA of a run, in the denoiser of the generator that its loss makes images with, if it makes any.

    Raises:
        ModelError: the dataset's model cannot be loaded.
        SettingsError: several models.
        TrainError: the LoRA to start from does not fit.
    """
    own: list[FrozenGenerator] = [*getattr(loss, "generators", [])]
    if not own and hasattr(loss, "generator"):
        own = [loss.generator]
    if len(own) > 1:
        raise SettingsError(
            "--network.kind generator-lora: expected one --model, as a LoRA belongs to one, given several; "
            "give --network.kind prompt-attention-2 for one network in front of all"
        )
    generator = (
        own[0] if own else FrozenGenerator.load(info, settings.reward, device, offline=settings.offline)
    )
    chosen = settings.network.generator_lora
    model = settings.model[0] if settings.model else info.model
    network = GeneratorLora(generator, model, chosen.rank, chosen.targets, settings.seed)
    if settings.start_from is not None:
        network.load(settings.start_from)
    return network
