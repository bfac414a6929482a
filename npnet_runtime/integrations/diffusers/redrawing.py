"""`prepare_latents` of a pipeline with another draw: the one place where all pipelines are alike.

Every pipeline draws its noise by `randn_tensor`, in the unpacked shape, and then packs it, makes its ids and
scales it as it likes. So the function runs unchanged but for that one name of its globals, which a copy of
the function looks up in a copy of them; nothing in diffusers is touched.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.errors import PipelineError

DRAW = "randn_tensor"


def plain_function(method: Any) -> FunctionType | None:
    """The function behind a method; None if it is not written in Python."""
    function = inspect.unwrap(method)
    return function if isinstance(function, FunctionType) else None


def redrawn(method: Any, draw: Callable[..., Tensor]) -> FunctionType:
    """A copy of a function of diffusers that draws its noise elsewhere.

    Args:
        method: which draws by `randn_tensor`.
        draw: called in its place, with its arguments.

    Raises:
        PipelineError: it is not written in Python, or has no such draw.
    """
    function = plain_function(method)
    if function is None or DRAW not in function.__code__.co_names:
        raise PipelineError(f"{method!r}: expected a function that draws its noise by {DRAW}")
    names = {**function.__globals__, DRAW: draw}
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class Once:
    """A draw that may happen once: what it was asked for is kept, and what it gave."""

    def __init__(self, draw: Callable[..., Tensor]) -> None:
        self._draw = draw
        self.count = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `randn_tensor`."""
        self.count += 1
        return self._draw(*args, **kwargs)

    def require(self, pipeline: str) -> None:
        """Raise unless it happened once.

        Raises:
            PipelineError: it did not.
        """
        if self.count != 1:
            raise PipelineError(
                f"{pipeline}: expected a pipeline that draws its noise once, given one whose prepare_latents "
                f"draws {self.count} times in this call; nothing was denoised"
            )


@dataclass(frozen=True)
class Packing:
    """How a pipeline lays out the noise that it draws.

    Args:
        drawn: shape of the noise as it is drawn, (B, C, H, W) but for axes of length 1.
        packed: shape of what `prepare_latents` makes of it.
        places: for each entry of the packed noise, in order, which of the drawn one it is; None if
            `prepare_latents` does not only move them.
    """

    drawn: tuple[int, ...]
    packed: tuple[int, ...]
    places: Tensor | None

    def unpack(self, given: Tensor) -> Tensor:
        """Packed values as they would have been drawn, gradients and all; unpacked ones as they are.

        Raises:
            PipelineError: they have neither shape.
        """
        shape = tuple(given.shape)
        if shape == self.drawn or self.drawn == self.packed:
            return given  # of another size than it draws: whether that can be is the engine's to say
        if shape == self.packed and self.places is not None:
            flat = torch.empty_like(given.flatten()).index_copy(
                0, self.places.to(given.device), given.flatten()
            )
            return flat.reshape(self.drawn)
        raise PipelineError(
            f"latents: expected noise of shape {self.drawn}, as it is drawn, or {self.packed}, as it is "
            f"packed, given {shape}"
        )


def packing_of(prepare: Callable[[Callable[..., Tensor]], Any], device: torch.device | str) -> Packing:
    """How a pipeline packs, asked of the pipeline itself, with the numbers 0, 1, 2, ... in place of noise.

    Args:
        prepare: runs the pipeline's own `prepare_latents` with a draw, and gives what it returns.
        device: where the numbers are made.
    """
    shapes: list[tuple[int, ...]] = []

    def count(shape: Any, **_: Any) -> Tensor:
        shapes.append(tuple(shape))
        total = math.prod(shapes[0])
        return torch.arange(total, dtype=torch.float64, device=device).reshape(shapes[0])

    packed = prepared_latents(prepare(count))
    places = packed.flatten().round().long()
    each = torch.arange(places.numel(), device=places.device)
    moved = bool(shapes) and torch.equal(places.sort().values, each)
    return Packing(shapes[0] if shapes else (), tuple(packed.shape), places if moved else None)


def prepared_latents(result: Any) -> Tensor:
    """The latents of what `prepare_latents` returns; some pipelines return ids with them."""
    latents: Tensor = result[0] if isinstance(result, (tuple, list)) else result
    return latents
