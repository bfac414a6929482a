"""Capture of a computation in a CUDA graph."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from npnet_runtime.errors import BackendError
from npnet_runtime.hot_path.static import Recording

WARM_UP = 2  # runs before a capture: they load kernels, choose algorithms and fill caches
_one_at_a_time = threading.Lock()
T = TypeVar("T")


class Capture:
    """Records computations as CUDA graphs that share one pool of memory.

    Sharing is safe as long as no two of its graphs are replayed at once. A graph may be replayed on any
    stream.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], T]) -> Recording[T]:
        """Run a computation a few times, then capture it.

        Args:
            compute: queues work on the current stream, and never waits for it while that is captured.

        Raises:
            BackendError: the device, or something that `compute` does, refuses.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with _one_at_a_time, torch.cuda.device(self._device):
                self._stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self._stream):
                    for _ in range(WARM_UP):
                        compute()
                with (
                    _no_collection(),
                    _own_workspaces(),
                    # "thread_local": other threads may go on to allocate and to synchronise
                    torch.cuda.graph(
                        graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"
                    ),
                ):
                    output = compute()
                torch.cuda.current_stream().wait_stream(self._stream)
        except RuntimeError as error:  # CUDA's, and torch's, running out of memory among them
            raise BackendError(
                f"no CUDA graph could be made: {type(error).__name__}: {error}\n"
                f"GoldenNoise(..., cuda_graphs=False) does without"
            ) from error
        return Recording(graph.replay, output)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector from what it may free: an engine in a cycle frees memory of CUDA's.

    That is not allowed while anything is captured, and ends the capture, or the process.
    """
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Let cuBLAS take its workspaces from the graph's memory, and forget them afterwards.

    Otherwise a replay would share the workspace of the stream it was captured on with whoever runs there:
    torch hands out the same 32 streams over and over.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
