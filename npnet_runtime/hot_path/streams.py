"""The path on CUDA without graphs: the half that needs no prompt on another stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npnet_runtime.backends.pool import Pool
from npnet_runtime.hot_path.base import Early, Texts, on_device
from npnet_runtime.hot_path.finite import all_finite
from npnet_runtime.hot_path.passes import Pass, Solver
from npnet_runtime.networks.graphs import Shape

MAX_CALLERS = 4  # calls in flight at once, here and with graphs; each has streams and buffers of its own


class StreamPath:
    """Queues every operation by itself, the two halves on two streams.

    Args:
        steps: of the network.
        device: a CUDA device.
    """

    def __init__(self, steps: Pass, device: torch.device) -> None:
        self._steps, self._device = steps, device
        self._sides: Pool[torch.cuda.Stream] = Pool(
            lambda: torch.cuda.Stream(device), MAX_CALLERS, lambda _: torch.cuda.synchronize(device)
        )

    def prepare(self, noise: Tensor) -> Early:
        """See `Path`. The SVD of this path looks at its result, so that the host waits for it."""
        with on_device(self._device), self._sides.borrow() as side:
            noise = noise.float().contiguous()
            side.wait_stream(torch.cuda.current_stream())
            noise.record_stream(side)  # the caller's stream may be done with it first
            with torch.cuda.stream(side):
                early = self._steps.before_prompt(noise)
                return Early(early, side.record_event())

    def golden(self, noise: Tensor, early: Early | None, texts: Texts, out: Tensor) -> bool:
        """See `Path`."""
        with on_device(self._device), self._sides.borrow() as side:
            if early is not None and early.ready is not None:
                torch.cuda.current_stream().wait_event(early.ready)
            golden, peak = overlapped(
                self._steps,
                noise.float().contiguous(),
                None if early is None else early.tensor,
                tuple(text.float().contiguous() for text in texts),
                side,
            )
            out.copy_(golden)
            return all_finite(peak.tolist(), out.dtype)  # waits

    def again(self, noise: Tensor, texts: Texts, out: Tensor) -> bool:
        """See `Path`: there is no other way."""
        return False

    def warm_up(self, batches: Sequence[int], callers: int, shapes: tuple[Shape, ...]) -> None:
        """See `Path`: nothing is kept but what kernels and libraries keep of a first call."""

    def describe(self) -> list[str]:
        """See `Path`."""
        return []


def overlapped(
    steps: Pass,
    noise: Tensor,
    early: Tensor | None,
    texts: Texts,
    side: torch.cuda.Stream,
    solver: Solver = "auto",
) -> tuple[Tensor, Tensor]:
    """Golden noise, the half that needs no prompt on a side stream, joined before the last step.

    It may be captured in a CUDA graph with `solver="jacobi"`: the side stream joins the capture.

    Args:
        steps: of the network.
        noise: (B, C, H, W) float32.
        early: the half that needs no prompt, if it is there.
        texts: see `Texts`, float32 and contiguous.
        side: any stream but the current one.
        solver: of the SVD.

    Returns:
        As `Pass.finish`, on the current stream.
    """
    current = torch.cuda.current_stream()
    start = current.record_event()
    # First what never waits for the device: a solver that does then waits beside a device at work.
    prompted = steps.with_prompt(noise, *texts)
    if early is None:
        side.wait_event(start)
        with torch.cuda.stream(side):
            early = steps.before_prompt(noise, solver)
        current.wait_stream(side)
        if early is not None and not torch.cuda.is_current_stream_capturing():
            # Freed by the caller below, it would go to the next one on the side stream, which does not wait
            # for the last step. The memory of a graph under capture is not given to others.
            early.record_stream(current)
    return steps.finish(early, noise, *prompted)
