"""`prepare_latents` of a pipeline with another draw: the one place where all pipelines are alike.

Every pipeline draws its noise by `randn_tensor`, in the unpacked shape, and then packs it, makes its ids and
scales it as it likes. So the function runs unchanged but for that one name of its globals, which a copy of
the function looks up in a copy of them; nothing in diffusers is touched.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
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


def unpacked(given: Tensor, prepare: Callable[[Callable[..., Tensor]], Any]) -> Tensor:
    """Noise that a caller passed, in the shape in which the pipeline would have drawn it.

    How a pipeline packs is asked of the pipeline itself, with the numbers 0, 1, 2, ... in place of noise.

    Args:
        given: packed, or not.
        prepare: runs the pipeline's own `prepare_latents` with a draw, and gives what it returns.

    Returns:
        The noise.

    Raises:
        PipelineError: it has neither shape.
    """
    shapes: list[tuple[int, ...]] = []

    def count(shape: Any, **_: Any) -> Tensor:
        shapes.append(tuple(shape))
        total = math.prod(shapes[0])
        return torch.arange(total, dtype=torch.float64, device=given.device).reshape(shapes[0])

    result = prepare(count)
    packed = result[0] if isinstance(result, (tuple, list)) else result
    drawn = shapes[0] if shapes else ()
    if tuple(given.shape) == drawn or tuple(packed.shape) == drawn:
        return given  # of another size than it draws: whether that can be is the engine's to say
    places = packed.flatten().round().long()
    each = torch.arange(places.numel(), device=places.device)
    if tuple(given.shape) == tuple(packed.shape) and torch.equal(places.sort().values, each):
        flat = torch.empty_like(given.flatten())
        flat[places] = given.flatten()
        return flat.reshape(drawn)
    raise PipelineError(
        f"latents: expected noise of shape {drawn}, as it is drawn, or {tuple(packed.shape)}, as it is "
        f"packed, given {tuple(given.shape)}"
    )
