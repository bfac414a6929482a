"""Golden noise by a LoRA on the pipeline's own denoiser, at the cost of one more of its evaluations."""

from __future__ import annotations

import copy
import inspect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.errors import InputError, PipelineError
from npnet_runtime.inputs.strength import check_strength, mix
from npnet_runtime.integrations.diffusers import attachment
from npnet_runtime.integrations.diffusers.adapter import (
    ADAPTER,
    Adapter,
    add_adapter,
    denoiser_of,
    predicted_change,
)
from npnet_runtime.integrations.diffusers.call import Call
from npnet_runtime.integrations.diffusers.checks import judge
from npnet_runtime.integrations.diffusers.guidance import guidance_of
from npnet_runtime.integrations.diffusers.latent_space import check_latent_space
from npnet_runtime.integrations.diffusers.lora_file import LoraConfig, read_lora
from npnet_runtime.integrations.diffusers.reading import NEGATIVE, passed_on
from npnet_runtime.integrations.diffusers.steering import FEW, SteeredPipeline
from npnet_runtime.integrations.protocol import GivenLatents

BOUND = "_npnet_lora"
# Of a call's arguments, what belongs to the image and not to one evaluation of the denoiser.
_OF_IMAGES = (
    {"self", "prompt", "prompt_2", "prompt_3", "prompt_4", "latents", "generator", "return_dict"}
    | {"callback_on_step_end", "callback_on_step_end_tensor_inputs", "callback", "callback_steps"}
    | {"num_images_per_prompt", "sigmas", "timesteps", "denoising_end", "guidance_rescale", "output_type"}
    | {"num_inference_steps", "intermediate_timesteps", "max_timesteps"}
)


class GoldenLora:
    """A LoRA that makes a pipeline's own denoiser predict golden noise (HyperNoise, arXiv 2508.09968).

    ```python
    golden = GoldenLora("run")
    golden.attach(pipe)
    ```

    It is bound to the model that it was trained for, and each call costs one more evaluation of the denoiser,
    without guidance. The denoiser's weights are as they were but in that evaluation.

    Args:
        weights: file or folder, as `npnet-train --network.kind generator-lora` writes it.
        strength: how golden: from 0, the noise as it was, to 1.

    Raises:
        CheckpointError: no such LoRA, or a damaged one.
        InputError: no strength.
    """

    def __init__(self, weights: str | Path, *, strength: float = 1.0) -> None:
        self.config: LoraConfig
        self.config, self._weights, self.digest = read_lora(weights)
        self.path = Path(weights)
        self._strength = check_strength(strength)

    def attach(
        self, pipe: Any, *, given_latents: GivenLatents = "golden", strength: float | None = None
    ) -> None:
        """Make every call of a diffusers pipeline start from golden noise.

        Args:
            pipe: of the model that the LoRA was trained for.
            given_latents: what becomes of noise that a caller passes as `latents`.
            strength: how golden, in this pipeline; None for the strength of this object.

        Raises:
            PipelineError: another model's pipeline, one that has golden noise attached already, or peft is
                missing.
        """
        if attachment.is_attached(pipe):
            raise PipelineError(
                f"pipe: expected a plain {type(pipe).__name__}, given one that has golden noise attached; "
                "detach it first"
            )
        pipe.__dict__[BOUND] = self.bind(pipe)
        golden: Any = self if strength is None else self.using(strength=strength)
        attachment.attach_as(golden, pipe, given_latents, LoraCall)

    def detach(self, pipe: Any) -> None:
        """Make the pipeline, and its denoiser, what they were before `attach`.

        Raises:
            PipelineError: this LoRA is not attached to it.
        """
        golden: Any = self
        attachment.detach(golden, pipe)
        pipe.__dict__.pop(BOUND).adapter.remove()

    def bind(self, pipe: Any, name: str = ADAPTER) -> BoundLora:
        """Put the weights into a pipeline's denoiser, where they are not used but by what is returned.

        Args:
            pipe: of the model that the LoRA was trained for.
            name: of the adapter there, where several are in one denoiser.

        Raises:
            PipelineError: another model's pipeline, or peft is missing.
        """
        verdict = judge(type(pipe))
        module = denoiser_of(pipe) if verdict.supported else None
        if module is None or type(module).__name__ != self.config.component_class:
            found = type(module).__name__ if module is not None else f"a pipeline that {verdict.reason}"
            raise PipelineError(
                f"pipe: expected a pipeline with the {self.config.component_class} of {self.config.model}, "
                f"which the LoRA was trained for, given {type(pipe).__name__} with {found}"
            )
        check_latent_space(pipe, self.config.space)
        layers = [name.removesuffix(".lora_A.weight") for name in self._weights if ".lora_A." in name]
        adapter = add_adapter(module, layers, self.config.rank, self.config.last, name)
        weights = adapter.weights
        try:
            for name, tensor in self._weights.items():
                parameter = weights[name]
                if parameter.shape != tensor.shape:
                    raise PipelineError(
                        f"pipe: expected the denoiser that the LoRA was trained for, in which {name} has the "
                        f"shape {tuple(tensor.shape)}, given one where it has {tuple(parameter.shape)}"
                    )
                parameter.data = tensor.to(parameter.device)
                parameter.requires_grad_(False)
        except BaseException:
            adapter.remove()
            raise
        return BoundLora(adapter, self.config)

    def using(self, *, strength: float) -> GoldenLora:
        """The same LoRA with another strength."""
        other = copy.copy(self)
        other._strength = check_strength(strength)
        return other

    def shares_engine(self, other: object) -> bool:
        """Whether both are the same weights."""
        return isinstance(other, GoldenLora) and other.digest == self.digest

    def report(self) -> str:
        """What it is, and what it costs."""
        config = self.config
        strength = f"\nstrength: {self._strength:g}" if self._strength != 1 else ""
        return (
            f"{self.path}: LoRA of rank {config.rank} on the {config.component} of {config.model}\n"
            f"cost: one evaluation of the {config.component} more in each call{strength}"
        )

    @property
    def strength(self) -> float:
        """How golden."""
        return self._strength

    def __call__(self, noise: Tensor, prompt_embeds: Any) -> Tensor:
        """Not without a pipeline.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a LoRA makes noise golden by the pipeline's own denoiser: attach it, golden.attach(pipe)"
        )

    def __deepcopy__(self, memo: object) -> GoldenLora:
        return self

    def __repr__(self) -> str:
        return f"<GoldenLora of {self.config.model}, rank {self.config.rank}>"


class BoundLora:
    """A LoRA within a pipeline's denoiser.

    Args:
        adapter: its weights there.
        config: see `LoraConfig`.
    """

    def __init__(self, adapter: Adapter, config: LoraConfig) -> None:
        self.adapter, self.config = adapter, config

    def change(self, noise: Tensor, arguments: dict[str, Any], steered: SteeredPipeline) -> Tensor:
        """The change that it predicts for noise (B, C, H, W), float32.

        Args:
            noise: as the pipeline draws it.
            arguments: of the pipeline's call, encoded prompts among them, without guidance.
            steered: the pipeline whose denoiser it is in.

        Raises:
            PipelineError: noise of other channels, or the pipeline refused the call.
        """
        if noise.shape[1] != self.config.latent_channels:
            raise PipelineError(
                f"noise: expected {self.config.latent_channels} channels, given {noise.shape[1]}"
            )
        at = torch.tensor(self.config.timestep, device=steered.device)
        # float32 where the pipeline takes it: a change is small beside the noise
        return predicted_change(self.adapter, steered, noise, at, {**arguments, **FEW})


class LoraCall(Call):
    """A call of a pipeline that a LoRA is attached to."""

    def begin(self, worker: ThreadPoolExecutor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Nothing can be done before the prompt is known."""
        if self._bind(args, kwargs):
            lora: Any = self._golden
            self._golden = _Within(lora, self)  # type: ignore[assignment]

    def prepare(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As `Call.prepare`; remembers the size of the image."""
        given = inspect.signature(method).bind(self.pipe, *args, **kwargs).arguments
        self.size = {"height": int(given["height"]), "width": int(given["width"])}
        return super().prepare(method, args, kwargs)

    def prompt(self) -> Any:
        """What the denoiser is given is the call itself."""
        return self

    def arguments(self, steered: SteeredPipeline, rows: int) -> dict[str, Any]:
        """Of a call that asks the denoiser for so many noises, without guidance."""
        given = {
            name: value
            for name, value in self._arguments.items()
            if name not in _OF_IMAGES and not name.startswith(NEGATIVE) and value is not None
        }
        encoded = passed_on(self.encoded, steered.parameters)
        given |= {name: _repeated(value, rows) for name, value in encoded.items()}
        unguided = guidance_of(steered.copy(), steered.parameters).arguments(1.0)
        if "negative_prompt" in steered.parameters:
            given["negative_prompt"] = None
        return {**given, **unguided, **self.size}


class _Within:
    """A LoRA as an engine, within a call."""

    def __init__(self, lora: GoldenLora, call: LoraCall) -> None:
        self._lora, self._call = lora, call
        self.device = torch.device(call.pipe._execution_device)

    def check_shapes(self, noise: tuple[int, ...], prompt: Any) -> None:
        """The pipeline's own denoiser takes what the pipeline draws."""

    def __call__(self, noise: Tensor, prompt: LoraCall) -> Tensor:
        if self._lora.strength == 0:
            return noise.clone()
        bound: BoundLora = self._call.pipe.__dict__[BOUND]
        with torch.no_grad():
            steered = SteeredPipeline(self._call.pipe)
            change = bound.change(noise, prompt.arguments(steered, len(noise)), steered)
        golden = (noise.float() + change).to(noise.dtype)
        if not golden.isfinite().all():
            raise InputError("golden noise is not finite: the LoRA's denoiser overflows in this precision")
        return mix(noise, golden, self._lora.strength)


def _repeated(value: Any, rows: int) -> Any:
    """Encoded prompts, each as often as it has noises."""
    if isinstance(value, list):
        return [part for part in value for _ in range(rows // len(value))]
    if isinstance(value, Tensor) and len(value) != rows:
        return value.repeat_interleave(rows // len(value), 0)
    return value
