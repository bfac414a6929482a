"""Calls of a pipeline that begin from given noise, run on a given schedule, and may end early.

So every pipeline of diffusers is its own denoiser: it encodes, packs, guides and shifts its schedule as it
does in use. Each call runs on a shallow copy of the pipeline, of a subclass of its class whose
`prepare_latents` takes the given noise where it would draw, with a scheduler that records in place of its
own. The pipeline and its class are not touched.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from npnet_runtime.errors import NPNetError, PipelineError
from npnet_runtime.integrations.diffusers.checks import judge, planar
from npnet_runtime.integrations.diffusers.reading import Reading, reading_of
from npnet_runtime.integrations.diffusers.recording import Ended, at_timestep, ending_at_timesteps
from npnet_runtime.integrations.diffusers.redrawing import (
    Once,
    Packing,
    packing_of,
    plain_function,
    prepared_latents,
    redrawn,
)

# Not every exception: autograd ends a recomputation of a checkpoint by one of its own.
_REFUSALS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_STEERING = "_npnet_steering"
FEW: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
"""Of a call that ends at its first step or before."""


class Drawn(NamedTuple):
    """What a pipeline was about to draw: (B, C, H, W), and the pixels (height, width) of its images."""

    shape: tuple[int, ...]
    pixels: tuple[int, int]


@dataclass
class _Steering:
    """One call: what it begins from, and what it showed."""

    reading: Reading
    device: torch.device
    noise: Tensor | None  # None ends the call where it would be drawn
    packings: dict[tuple[int, ...], Packing]
    error: type[NPNetError]
    encoded: dict[str, Any] = field(default_factory=dict)
    drawn: Drawn | None = None
    packing: Packing | None = None
    returned: Any = None

    def saw_prompt(self, values: Any, names: tuple[str, ...]) -> None:
        values = values if isinstance(values, tuple) and len(names) > 1 else (values,)
        for name, value in zip(names, values, strict=False):
            self.encoded.setdefault(name, value)

    def prepare(self, own: Any, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = _signature(method).bind(own, *args, **kwargs).arguments
        pixels = int(given["height"]), int(given["width"])

        def draw(
            shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None
        ) -> Tensor:
            self.drawn = Drawn(planar(tuple(shape)), pixels)
            if self.noise is None:
                raise Ended
            if tuple(self.noise.shape) != self.drawn.shape:
                raise self.error(
                    f"{type(own).__name__}: expected noise of shape {self.drawn.shape}, as it draws for "
                    f"images of {pixels[0]}x{pixels[1]} pixels, given {tuple(self.noise.shape)}"
                )
            return self.noise.reshape(tuple(shape)).to(device, dtype)

        once = Once(draw)
        result = redrawn(method, once)(own, *args, **kwargs)
        once.require(type(own).__name__)
        shape = tuple(self.noise.shape) if self.noise is not None else ()
        if shape not in self.packings:
            self.packings[shape] = packing_of(
                lambda count: redrawn(method, count)(own, *args, **kwargs), prepared_latents(result).device
            )
        self.packing = self.packings[shape]
        return result


class SteeredPipeline:
    """Calls of a pipeline, steered.

    Args:
        pipe: a text-to-image pipeline of diffusers; not changed, and not to be moved meanwhile.
        options: of every call, where the pipeline's own defaults are not wanted.

    Raises:
        PipelineError: it is none, or draws in a way that golden noise cannot be attached to.
    """

    error: type[NPNetError] = PipelineError
    """What is raised in its place by packages that have an error of their own for models."""

    def __init__(self, pipe: Any, options: Mapping[str, Any] | None = None) -> None:
        self.kind: Any = type(pipe)
        if not (hasattr(self.kind, "encode_prompt") and hasattr(self.kind, "prepare_latents")):
            raise self.error(
                f"model: expected a text-to-image pipeline of diffusers, given {self.kind.__name__}"
            )
        verdict = judge(self.kind)
        if not verdict.supported:
            raise self.error(
                f"model: expected a pipeline that starts from noise alone, given {self.kind.__name__}, which "
                f"{verdict.reason}"
            )
        self.pipe = pipe
        self.reading = reading_of(self.kind)
        self.parameters = inspect.signature(self.kind.__call__).parameters
        binning = {"use_resolution_binning": False} if "use_resolution_binning" in self.parameters else {}
        self.options = binning | dict(options or {})
        self._packings: dict[tuple[int, ...], Packing] = {}

    @functools.cached_property
    def device(self) -> torch.device:
        """Where the pipeline runs. It walks through all modules to find out, several times in a call."""
        found: torch.device = self.pipe._execution_device
        return found

    def copy(self) -> Any:
        """The shallow copy that a call runs on."""
        steered = _steered_class(self.kind)
        own = steered.__new__(steered)
        own.__dict__.update(self.pipe.__dict__)
        own.__dict__["_progress_bar_config"] = {"disable": True}
        return own

    def encode(self, **arguments: Any) -> tuple[dict[str, Any], Drawn]:
        """What the pipeline encodes in a call, by the names it has for it, and what it would draw then.

        Raises:
            PipelineError: the pipeline refused the call, or drew nothing.
        """
        state = self._run(arguments, None, self.pipe.scheduler)
        if state.drawn is None:
            raise self.error(f"{self.kind.__name__}: its call drew no noise")
        return state.encoded, state.drawn

    def timesteps(self, noise: Tensor, **arguments: Any) -> Tensor:
        """(steps,) timesteps that the pipeline sets for a call that begins from such noise.

        Raises:
            PipelineError: the pipeline refused the call, or set none.
        """
        scheduler = ending_at_timesteps(self.pipe.scheduler)
        self._run(arguments, noise, scheduler)
        found: Tensor | None = scheduler.timesteps
        if found is None:
            raise self.error(f"{self.kind.__name__}: its call set no timesteps")
        return found

    def output(self, latents: Tensor, timestep: Tensor, **arguments: Any) -> Tensor:
        """What the pipeline hands to its scheduler as the model's output at a timestep, guided as it guides.

        Args:
            latents: (B, C, H, W), as the denoiser takes them.
            timestep: (), of the scheduler.
            arguments: of the call.

        Returns:
            (B, C, H, W), in the layout in which noise is drawn.

        Raises:
            PipelineError: the pipeline refused the call, or handed over nothing.
        """
        scheduler = at_timestep(self.pipe.scheduler, timestep)
        state = self._run(arguments, latents, scheduler)
        if scheduler.output is None or state.packing is None:
            raise self.error(f"{self.kind.__name__}: its call handed nothing to its scheduler")
        return state.packing.unpack(scheduler.output).reshape(latents.shape)

    def images(self, noise: Tensor, scheduler: Any, **arguments: Any) -> Any:
        """Images of the whole call, from noise (B, C, H, W), as the pipeline returns them.

        Raises:
            PipelineError: the pipeline refused the call.
        """
        return self._run(arguments, noise, scheduler).returned.images

    def _run(self, arguments: Mapping[str, Any], noise: Tensor | None, scheduler: Any) -> _Steering:
        own = self.copy()
        state = _Steering(self.reading, self.device, noise, self._packings, self.error)
        own.__dict__[_STEERING], own.__dict__["scheduler"] = state, scheduler
        # below `torch.no_grad`: whether there are gradients is the caller's to say
        call: Any = plain_function(self.kind.__call__)
        try:
            state.returned = call(own, **{**self.options, **arguments})
        except Ended:
            pass
        except (NPNetError, torch.OutOfMemoryError):
            raise
        except _REFUSALS as error:
            raise self.error(
                f"{self.kind.__name__} refused a call with {', '.join(sorted(arguments))}: "
                f"{type(error).__name__}: {str(error)[:300]}"
            ) from error
        return state


@functools.cache
def _signature(method: Any) -> inspect.Signature:
    return inspect.signature(method)


@functools.cache
def _steered_class(kind: Any) -> Any:
    """The subclass of a pipeline class whose calls are steered. It holds no state."""

    def encode_prompt(self: Any, *args: Any, **kwargs: Any) -> Any:
        encoded = kind.encode_prompt(self, *args, **kwargs)
        state: _Steering = self.__dict__[_STEERING]
        state.saw_prompt(encoded, state.reading.names_at(sys._getframe(1)))
        return encoded

    def prepare_latents(self: Any, *args: Any, **kwargs: Any) -> Any:
        state: _Steering = self.__dict__[_STEERING]
        return state.prepare(self, kind.prepare_latents, args, kwargs)

    wrapped = {
        method.__name__: functools.wraps(getattr(kind, method.__name__))(method)
        for method in (encode_prompt, prepare_latents)
    }
    device = property(lambda self: self.__dict__[_STEERING].device)
    return type(kind.__name__, (kind,), {**wrapped, "_execution_device": device})
