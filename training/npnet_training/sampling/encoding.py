"""A pipeline's prompts as it encodes them, and the shapes of its noise and texts: its own call says both."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from npnet_runtime.inputs.texts import Prompt
from npnet_runtime.integrations.diffusers.guidance import guidance_of
from npnet_runtime.integrations.diffusers.reading import NEGATIVE, passed_on, prompt_from, roles_of
from npnet_runtime.integrations.diffusers.steering import FEW, Drawn, SteeredPipeline
from npnet_training.errors import ModelError
from npnet_training.sampling.conditioning import Conditioning, Value

_LONGER = "a red cube"


class _Steered(SteeredPipeline):
    """A pipeline that is refused as a model."""

    error = ModelError


class PromptEncoder:
    """Encodes prompts by a pipeline's own text encoders, and knows the shapes of what it draws and reads.

    Args:
        pipe: a text-to-image pipeline of diffusers; not changed.
        size: of images in pixels, (height, width); None for the pipeline's own.
        options: of the pipeline's call, where its defaults are not wanted, such as `max_sequence_length`.

    Raises:
        ModelError: it is no such pipeline.
    """

    def __init__(
        self, pipe: Any, size: tuple[int, int] | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self.pipe = pipe
        self.steered = _Steered(pipe, options)
        self.guidance = guidance_of(self.steered.copy(), self.steered.parameters)
        self._size = {} if size is None else {"height": size[0], "width": size[1]}
        self._shapes: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._empty: dict[str, tuple[Conditioning, Drawn]] = {}

    @property
    def device(self) -> torch.device:
        """Where the denoiser runs."""
        return self.steered.device

    @property
    def empty(self) -> Conditioning:
        """The empty prompt, encoded as a prompt."""
        return self._negative("")[0]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the noise of an image of the denoiser's size."""
        _, channels, height, width = self._negative("")[1].shape
        return channels, height, width

    def shape_for(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """(C, H, W) of the noise of an image of that size, (height, width) in pixels; None for its own.

        Raises:
            ModelError: the pipeline makes no such images.
        """
        if size is None:
            return self.latent_shape
        if size not in self._shapes:
            arguments = {**self.guidance.arguments(1.0), "height": size[0], "width": size[1], **FEW}
            with torch.no_grad():
                _, drawn = self.steered.encode(**self.empty.arguments(guided=False), **arguments)
            _, channels, height, width = drawn.shape
            self._shapes[size] = channels, height, width
        return self._shapes[size]

    @functools.cached_property
    def reads(self) -> dict[str, str]:
        """What a network can read of the prompts: by field of `Prompt`, the pipeline's argument."""
        return roles_of(self.steered.reading.positive(), self.empty.positive)

    @functools.cached_property
    def texts(self) -> dict[str, tuple[int, ...]]:
        """Shape of each of `reads`, of one prompt; of tokens, as many as there may be at most."""
        tokens, width = self.text_shape
        found: dict[str, tuple[int, ...]] = {}
        for role, tensor in self.prompt(self.empty).given.items():
            found[role.removeprefix("prompt_")] = tuple(tensor.shape[1:])
        return found | {"embeds": (tokens, width)} | ({"mask": (tokens,)} if "mask" in found else {})

    def prompt(self, conditioning: Conditioning, reads: Mapping[str, str] | None = None) -> Prompt:
        """Encoded prompts as a golden-noise network reads them.

        Args:
            conditioning: of the prompts.
            reads: what it reads, as `Manifest.reads`; None for all it can.

        Raises:
            PipelineError: the pipeline encodes no such thing.
        """
        return prompt_from(conditioning.positive, reads or self.reads, type(self.pipe).__name__)

    @functools.cached_property
    def text_shape(self) -> tuple[int, int]:
        """Tokens, at most, and width of `prompt_embeds`."""
        encoded = (self.empty, self.encode([_LONGER], unconditional=False))
        (short, width), (longer, _) = (one.positive["prompt_embeds"][0].shape[-2:] for one in encoded)
        if short == longer:
            return short, width
        longest = self.steered.parameters.get("max_sequence_length")
        given = self.steered.options.get("max_sequence_length", getattr(longest, "default", longer))
        return max(int(given), longer), width

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], negative: str = "", *, unconditional: bool = True
    ) -> Conditioning:
        """Encode prompts by the pipeline's text encoders, in one batch.

        Args:
            prompts: B of them.
            negative: of all of them; "" is what the pipeline takes when it is given none.
            unconditional: with the negative prompt, which mixed guidance needs; it is encoded once.
        """
        values, _ = self.steered.encode(
            prompt=list(prompts), **self._size, **self.guidance.arguments(1.0), **FEW
        )
        positive = self._taken(values, negative=False)
        if not unconditional or self.guidance.kind != "mixed":
            return Conditioning(positive, texts=tuple(prompts))
        shared = self._negative(negative)[0].expand(len(prompts))
        return Conditioning(positive, shared.negative, tuple(prompts))

    @torch.no_grad()
    def _negative(self, prompt: str) -> tuple[Conditioning, Drawn]:
        """The negative prompt encoded, beside an empty one, and what such a call draws."""
        if prompt not in self._empty:
            mixed = self.guidance.kind == "mixed"
            given: dict[str, Any] = {}
            if mixed and (prompt or self.guidance.argument == "true_cfg_scale"):
                given["negative_prompt"] = [prompt]
            values, drawn = self.steered.encode(
                prompt=[""], **given, **self._size, **self.guidance.arguments(5.0), **FEW
            )
            negative = self._taken(values, negative=True) if mixed else None
            self._empty[prompt] = Conditioning(self._taken(values, negative=False), negative), drawn
        return self._empty[prompt]

    def _taken(self, values: Mapping[str, Any], *, negative: bool) -> dict[str, Value]:
        """What the pipeline's call takes of what it encoded of one of the two prompts."""
        own = {name: value for name, value in values.items() if name.startswith(NEGATIVE) == negative}
        found: dict[str, Value] = passed_on(own, self.steered.parameters)
        if not negative and "prompt_embeds" not in found:
            raise ModelError(f"{type(self.pipe).__name__}: its encode_prompt gave no prompt_embeds")
        return found
