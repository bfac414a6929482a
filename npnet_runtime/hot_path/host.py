"""The path on a CPU: the half that needs no prompt on another thread."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from npnet_runtime.hot_path.base import Early, Texts
from npnet_runtime.hot_path.finite import all_finite
from npnet_runtime.hot_path.passes import Pass
from npnet_runtime.networks.graphs import Shape


class HostPath:
    """The SVD keeps one core busy, the prompt half all: side by side.

    Args:
        steps: of the network.
    """

    def __init__(self, steps: Pass) -> None:
        self._steps = steps
        self._worker = ThreadPoolExecutor(thread_name_prefix="npnet")

    def prepare(self, noise: Tensor) -> Early:
        """See `Path`. On the same threads as in `golden`, and so with the same bits."""
        return Early(self._begin(noise.float().contiguous()).result())

    def golden(self, noise: Tensor, early: Early | None, texts: Texts, out: Tensor) -> bool:
        """See `Path`."""
        noise = noise.float().contiguous()
        begun = self._begin(noise) if early is None else None
        prompted = self._steps.with_prompt(noise, *(text.float().contiguous() for text in texts))
        half = begun.result() if begun is not None else early and early.tensor
        golden, peak = self._steps.finish(half, noise, *prompted)
        out.copy_(golden)
        return all_finite(peak.tolist(), out.dtype)

    def again(self, noise: Tensor, texts: Texts, out: Tensor) -> bool:
        """See `Path`: there is no other way."""
        return False

    def warm_up(self, batches: Sequence[int], callers: int, shapes: tuple[Shape, ...]) -> None:
        """See `Path`: nothing is kept."""

    def describe(self) -> list[str]:
        """See `Path`."""
        return []

    def _begin(self, noise: Tensor) -> Future[Tensor | None]:
        return self._worker.submit(self._before_prompt, noise)

    def _before_prompt(self, noise: Tensor) -> Tensor | None:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):  # both belong to a thread
            return self._steps.before_prompt(noise)
