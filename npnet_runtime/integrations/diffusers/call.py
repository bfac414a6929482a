"""One call of an attached pipeline: what it has shown so far, and the noise it starts from."""

from __future__ import annotations

import functools
import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.errors import PipelineError
from npnet_runtime.integrations.diffusers.ahead import Ahead
from npnet_runtime.integrations.diffusers.checks import ELSEWHERE, check_device, denoiser
from npnet_runtime.integrations.diffusers.draw import Draw
from npnet_runtime.integrations.protocol import GivenLatents, Golden


class Call:
    """The steps of one call, in the order in which a pipeline takes them.

    Args:
        pipe: an attached pipeline.
        golden: its engine.
        given_latents: what becomes of noise that the caller passes.
    """

    def __init__(self, pipe: Any, golden: Golden, given_latents: GivenLatents) -> None:
        self.pipe = pipe
        self._golden = golden
        self._given_latents = given_latents
        self._prompt_embeds: Any = None
        self._foreseen: Draw | Tensor | None = None
        self._ahead: Ahead | None = None

    def begin(self, worker: ThreadPoolExecutor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin the spectral half of the noise before the prompt is encoded, if the noise can be foreseen.

        What is begun counts only if the pipeline then draws that very noise: see `latents`.
        """
        try:
            pipeline: Any = type(self.pipe)
            given = _signature(pipeline).bind(self.pipe, *args, **kwargs).arguments
        except TypeError:
            return  # wrong arguments: the pipeline says so itself
        latents = given.get("latents")
        if latents is None:
            self._foreseen = self._foresee(given)
        elif isinstance(latents, Tensor) and self._given_latents == "golden":
            self._foreseen = latents
        if self._foreseen is not None:
            draw = self._foreseen
            noise = draw.peek() if isinstance(draw, Draw) else draw.to(self._golden.device)
            self._ahead = Ahead(self._golden, noise, worker)

    def saw_prompt(self, encoded: Any) -> None:
        """Take the positive embeddings from what the first `encode_prompt` of the call returned.

        Hunyuan-DiT encodes twice, for CLIP and then for T5: its network reads CLIP.
        """
        if self._prompt_embeds is None:
            self._prompt_embeds = encoded[0] if isinstance(encoded, tuple) else encoded

    def latents(self, draw: Draw, given: Any) -> Any:
        """The golden noise that the pipeline is to take for its `latents`.

        Args:
            draw: the noise that the plain pipeline would draw now.
            given: the `latents` that it was passed instead, or None.

        Raises:
            PipelineError: the pipeline runs on another device than the engine, or encoded no prompt.
            InputError: a shape or a prompt that the engine cannot take; no random number was drawn.
        """
        if given is not None and self._given_latents == "as-is":
            return given
        if given is None and draw.miscounted:
            return None  # a wrong number of generators: the pipeline says so itself
        check_device(draw.device, self._golden.device)
        if not isinstance(self._prompt_embeds, Tensor):
            raise PipelineError(
                f"{type(self.pipe).__name__}: expected prompt embeddings from encode_prompt before the noise "
                f"is drawn, given {type(self._prompt_embeds).__name__}; {ELSEWHERE}"
            )
        if given is None:
            self._golden.check_shapes(draw.shape, tuple(self._prompt_embeds.shape))
            foreseen = isinstance(self._foreseen, Draw) and draw.same_as(self._foreseen)
            noise = draw.take()
        else:
            foreseen = given is self._foreseen
            noise = given.to(draw.device) if isinstance(given, Tensor) else given
        if foreseen and self._ahead is not None:
            return self._golden(self._ahead.result(), self._prompt_embeds)
        return self._golden(noise, self._prompt_embeds)

    def end(self) -> None:
        """The call is over, or failed: leave nothing behind."""
        if self._ahead is not None:
            self._ahead.cancel()

    def _foresee(self, given: dict[str, Any]) -> Draw | None:
        """The noise that a call with these arguments will most likely draw; None if there is no telling."""
        prompt, prompt_embeds = given.get("prompt"), given.get("prompt_embeds")
        if isinstance(prompt, str):
            prompts = 1
        elif isinstance(prompt, list):
            prompts = len(prompt)
        elif isinstance(prompt_embeds, Tensor):
            prompts = len(prompt_embeds)
        else:
            return None
        count = prompts * (given.get("num_images_per_prompt") or 1)
        shape = (count, *self._golden.bundle.manifest.config.latent_shape)
        dtype = _computes_in(self.pipe)
        if dtype is None:
            return None
        draw = Draw(shape, dtype, self._golden.device, given.get("generator"))
        return draw if draw.foreseeable and count else None


def _computes_in(pipe: Any) -> torch.dtype | None:
    """The dtype of the first weight that is not stored smaller than it is used; None if there is none.

    diffusers' own `dtype` walks through all modules, which takes milliseconds.
    """
    for part in (denoiser(pipe), *(getattr(pipe, name, None) for name in ("text_encoder_2", "text_encoder"))):
        for weight in part.parameters() if isinstance(part, torch.nn.Module) else ():
            if weight.dtype in (torch.float16, torch.bfloat16, torch.float32):
                return weight.dtype
    return None


@functools.cache
def _signature(pipeline: Any) -> inspect.Signature:
    return inspect.signature(pipeline.__call__)
