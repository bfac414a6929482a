"""The noise a pipeline draws, known by what determines it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from npnet_runtime.devices import resolve_device


class Draw:
    """Noise as `diffusers.utils.torch_utils.randn_tensor` draws it, at the random state of now.

    Args:
        shape: (B, C, H, W).
        dtype: of the noise.
        device: of the noise.
        generator: as passed to a pipeline: one, one per image, or None for the global generator.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str, generator: Any
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.device = resolve_device(device)
        self._generator = generator
        generators = generator if isinstance(generator, list) else [generator]
        self._sources: list[Any] = [
            _global_generator(self.device) if one is None else one for one in generators
        ]
        self.miscounted = isinstance(generator, list) and len(generator) != shape[0]
        # Not so for what the pipeline will refuse, or for a device whose global state cannot be read.
        self.foreseeable = not self.miscounted and all(
            isinstance(source, Generator) and source.device.type in ("cpu", self.device.type)
            for source in self._sources
        )
        # States live on the host, also those of CUDA generators: comparing them waits for no kernel.
        self._states = [source.get_state() for source in self._sources] if self.foreseeable else []

    def same_as(self, other: Draw) -> bool:
        """Whether both draw the same noise, to the last bit."""
        return (
            self.foreseeable
            and other.foreseeable
            and (self.shape, self.dtype, self.device) == (other.shape, other.dtype, other.device)
            and len(self._sources) == len(other._sources)
            and all(a is b for a, b in zip(self._sources, other._sources, strict=True))
            and all(torch.equal(a, b) for a, b in zip(self._states, other._states, strict=True))
        )

    def take(self) -> Tensor:
        """Draw the noise."""
        return self._draw(self._generator)

    def peek(self) -> Tensor:
        """The noise that `take` would draw, from copies of the generators."""
        copies: dict[int, Generator] = {}  # a generator listed twice is advanced twice
        for source, state in zip(self._sources, self._states, strict=True):
            if id(source) not in copies:
                copies[id(source)] = Generator(source.device).set_state(state)
        twins = [copies[id(source)] for source in self._sources]
        return self._draw(twins if isinstance(self._generator, list) else twins[0])

    def _draw(self, generator: Any) -> Tensor:
        from diffusers.utils.torch_utils import randn_tensor

        return randn_tensor(self.shape, generator=generator, device=self.device, dtype=self.dtype)


def _global_generator(device: torch.device) -> Generator | None:
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "cuda" and torch.cuda.is_initialized():
        return torch.cuda.default_generators[device.index]
    return None
