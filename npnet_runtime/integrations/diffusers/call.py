"""One call of an attached pipeline: what it has shown so far, and the noise it starts from."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.errors import PipelineError
from npnet_runtime.inputs.checks import check_tensor
from npnet_runtime.inputs.texts import Prompt
from npnet_runtime.integrations.diffusers.ahead import Ahead
from npnet_runtime.integrations.diffusers.checks import check_device, denoiser, planar
from npnet_runtime.integrations.diffusers.draw import Draw
from npnet_runtime.integrations.diffusers.reading import NEGATIVE, prompt_from, reading_of, reads_of, roles_of
from npnet_runtime.integrations.diffusers.redrawing import Once, packing_of, redrawn
from npnet_runtime.integrations.protocol import GivenLatents, Golden
from npnet_runtime.networks.npnet_config import NPNetConfig


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
        self._reading = reading_of(type(pipe))
        self._arguments: dict[str, Any] = {}
        self.encoded: dict[str, Any] = {}
        self._foreseen: Draw | Tensor | None = None
        self._ahead: Ahead | None = None

    def begin(self, worker: ThreadPoolExecutor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin the spectral half of the noise before the prompt is encoded, if the noise can be foreseen.

        What is begun counts only if the pipeline then draws that very noise: see `draw`.
        """
        if not self._bind(args, kwargs):
            return
        if not isinstance(self._golden.bundle.manifest.config, NPNetConfig):
            return  # another kind of network has nothing to begin with
        latents = self._arguments.get("latents")
        if latents is None:
            self._foreseen = self._foresee(self._arguments)
        elif isinstance(latents, Tensor) and self._given_latents == "golden":
            self._foreseen = latents
        if self._foreseen is not None:
            draw = self._foreseen
            noise = draw.peek() if isinstance(draw, Draw) else draw.to(self._golden.device)
            self._ahead = Ahead(self._golden, noise, worker)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Keep the arguments of the call; False for wrong ones, of which the pipeline says so itself."""
        try:
            pipeline: Any = type(self.pipe)
            self._arguments = _signature(pipeline).bind(self.pipe, *args, **kwargs).arguments
        except TypeError:
            return False
        return True

    def saw_prompt(self, encoded: Any, caller: FrameType | None) -> None:
        """Keep what `encode_prompt` returned, by the names that the pipeline gives it; the first of each."""
        names = self._reading.names_at(caller)
        values = encoded if isinstance(encoded, tuple) and len(names) > 1 else (encoded,)
        for name, value in zip(names, values, strict=False):
            if not name.startswith(NEGATIVE):
                self.encoded.setdefault(name, value)

    def prompt(self) -> Prompt:
        """What the network reads of the positive prompt: encoded in this call, or passed to it.

        Raises:
            PipelineError: there is no such thing.
        """
        manifest, names = self._golden.bundle.manifest, self._reading.positive()
        if manifest.text_encoder is not None:
            return self._golden.encode(texts_given(self._arguments.get("prompt"), type(self.pipe).__name__))
        wanted = [*names, *(manifest.reads or {}).values()]
        values = {name: self._arguments.get(name) for name in wanted} | self.encoded
        reads = reads_of(manifest, roles_of(names, values))
        return prompt_from(values, reads, type(self.pipe).__name__)

    def prepare(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the pipeline's own `prepare_latents` with golden noise where it draws.

        Args:
            method: the plain one.
            args: as the pipeline passes them, without itself.
            kwargs: likewise.

        Raises:
            PipelineError: the pipeline runs on another device than the engine, encoded no prompt, or does not
                draw once.
            InputError: a shape or a prompt that the engine cannot take; no random number was drawn.
        """
        bound = inspect.signature(method).bind(self.pipe, *args, **kwargs)
        given = bound.arguments.get("latents")
        if given is not None and self._given_latents == "as-is":
            return method(self.pipe, *args, **kwargs)
        if given is not None and not isinstance(given, Tensor):
            check_tensor("noise", given)
        bound.arguments["latents"] = None

        def prepared(draw: Callable[..., Tensor]) -> Any:
            once = Once(draw)
            result = redrawn(method, once)(*bound.args, **bound.kwargs)
            once.require(type(self.pipe).__name__)
            return result

        if given is None:
            return prepared(self.draw)
        check_device(bound.arguments.get("device", given.device), self._golden.device)
        device = self._golden.device
        noise = packing_of(prepared, device).unpack(given.to(device))
        return prepared(functools.partial(self._given, given, noise))

    def draw(
        self, shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None
    ) -> Tensor:
        """In place of `randn_tensor`: the same noise, made golden."""
        draw = Draw(tuple(shape), dtype or torch.float32, device or "cpu", generator)
        foreseen = isinstance(self._foreseen, Draw) and draw.same_as(self._foreseen)
        ahead = self._ahead if foreseen else None
        return draw_golden(self._golden, draw, self.prompt, ahead)

    def _given(self, given: Tensor, noise: Tensor, shape: Any, dtype: Any = None, **_: Any) -> Tensor:
        """In place of `randn_tensor`: noise that the caller passed, made golden."""
        prompt = self.prompt()
        foreseen = given is self._foreseen and self._ahead is not None and noise.shape == given.shape
        made = (
            self._ahead.result()
            if foreseen and self._ahead is not None
            else noise.reshape(planar(tuple(noise.shape)))
        )
        return self._golden(made, prompt).reshape(noise.shape).to(dtype)

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


def texts_given(prompt: Any, pipeline: str) -> list[str]:
    """The texts of a call, for a network with a text encoder of its own.

    Raises:
        PipelineError: embeddings were passed in their place.
    """
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(t, str) for t in texts):
        raise PipelineError(
            f"{pipeline}: expected the prompt as text, which this engine encodes by an encoder of its own, "
            f"given {'embeddings alone' if prompt is None else type(prompt).__name__}; pass prompt=..., "
            "or golden(noise, golden.encode([prompt])) as latents"
        )
    return list(texts)


def draw_golden(golden: Golden, draw: Draw, read: Callable[[], Prompt], ahead: Ahead | None = None) -> Tensor:
    """Noise as a pipeline draws it, made golden.

    Args:
        golden: the engine.
        draw: of the pipeline.
        read: gives the prompt of its call.
        ahead: of the same noise, begun before.

    Raises:
        PipelineError: the pipeline draws on another device than the engine's, or no planes.
        InputError: a shape or a prompt that the engine cannot take; no random number was drawn.
    """
    planes = planar(draw.shape)
    check_device(draw.device, golden.device)
    prompt = read()
    if not draw.miscounted:  # a wrong number of generators: the draw says so itself
        golden.check_shapes(planes, prompt)
    noise = draw.take().reshape(planes)
    begun = None if ahead is None else ahead.result()
    return golden(noise if begun is None else begun, prompt).reshape(draw.shape)


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
