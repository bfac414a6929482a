"""What a back end does for `GoldenNoise`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from npnet_runtime.networks.graphs import SPECTRAL_HEAD, Graph
from npnet_runtime.threads import choose_threads


class Backend(Protocol):
    """Runs the graphs of a bundle on one device. Safe to call from several threads.

    Tensors in and out are contiguous float32 on `device`; on CUDA the work is ordered after what the
    caller queued on its current stream, and before what it queues next.
    """

    device: torch.device

    @property
    def capture_obstacle(self) -> str | None:
        """Why a CUDA graph cannot hold its runs; None if it can."""

    def for_capture(self) -> Backend:
        """A back end whose runs one CUDA graph may hold; it must live as long as that graph.

        Its runs take nothing from the host but what the first of them found: shapes and addresses stay.

        Raises:
            BackendError: `capture_obstacle`, or too little memory.
        """

    def run(self, graph: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run one graph.

        Args:
            graph: a name of `npnet_runtime.networks.graphs`.
            inputs: in the order and of the shapes given there, behind a batch.

        Returns:
            Its outputs, in that order.
        """


def empty_outputs(graph: Graph, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Room for the outputs of a graph that is run on these inputs."""
    shapes = {name: tuple(tensor.shape) for name, tensor in zip(graph.inputs, inputs, strict=True)}
    return {name: inputs[0].new_empty(shape) for name, shape in graph.output_shapes(shapes).items()}


def graph_threads(graph: str, threads: int | None) -> int:
    """Threads of a graph's session: one of the spectral head, a thousandth of the work that runs beside it.

    Args:
        graph: its name.
        threads: of the others; see `npnet_runtime.threads`.

    Raises:
        BackendError: no number of threads.
    """
    return 1 if graph == SPECTRAL_HEAD else choose_threads(threads)
