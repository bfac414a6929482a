"""AOTInductor engines: the graphs exported, compiled to machine code, packaged."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from npnet_export.errors import ExportError
from npnet_export.onnx_graphs import dynamic_shapes
from npnet_export.request import Binding, BuildRequest
from npnet_kernels import text_affine
from npnet_runtime.backends.aoti_backend import SUFFIX
from npnet_runtime.backends.machine import cuda_capabilities, this_platform
from npnet_runtime.networks.fused import fused_form
from npnet_runtime.networks.graphs import Graph, graphs
from npnet_runtime.networks.npnet import PromptHalf
from npnet_runtime.networks.registry import network_from_state

# Freezing evaluates what depends on weights only (the folded patch embedding, the score biases) and on a
# CPU lays the weights out for its matrix products: twice as fast there.
INDUCTOR = {"freezing": True}


class _PromptHalf(nn.Module):
    """The prompt half with the kernel for its long sum, where there is one, compiled into the package."""

    def __init__(self, half: PromptHalf) -> None:
        super().__init__()
        self.inner = half

    def forward(self, noise: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        affine = self.inner.text_affine
        scale_shift = text_affine(prompt_embeds, affine.weight, affine.bias)
        return scale_shift, self.inner.residual(noise, scale_shift)


def compiled_form(part: nn.Module) -> nn.Module:
    """The module that is compiled in place of a part of the network, in eval mode."""
    if not isinstance(part, PromptHalf):
        return part.eval()
    return (fused_form(part, part.text_affine.weight.device) or _PromptHalf(part)).eval()


def write_aoti(request: BuildRequest) -> Binding:
    """Write one package for each graph of the network, for the device of the request.

    Inputs and outputs are float32, with a batch from 1 to `max_batch`.

    Raises:
        ExportError: there is no C++ compiler, or it or Inductor failed.
    """
    config, device = request.network.config, request.device
    network = network_from_state(config, request.network.state_dict()).to(device)
    with own_cache(), request.on_device():
        for name, part in network.parts().items():
            file = name + SUFFIX
            request.stage(f"compiling {file} for {device}")
            graph = graphs(config)[name]
            compile_package(compiled_form(part), graph, request.max_batch, device, request.folder / file)
    requires = {"torch": f"=={torch.__version__.partition('+')[0]}"}
    platform = this_platform()
    if device.type == "cuda":
        capability = cuda_capabilities()[device.index or 0]
        del platform["cpu_features"]  # the code on the host only launches kernels
        return Binding(requires, "cuda", (capability,), platform)
    return Binding(requires, "cpu", (), platform)


@contextmanager
def own_cache() -> Iterator[None]:
    """A cache of Inductor's that goes away: the engine is compiled from these sources, nothing is left."""
    from torch._inductor.utils import fresh_cache

    with tempfile.TemporaryDirectory(prefix="npnet-aoti-") as folder, fresh_cache(dir=folder):
        yield


def compile_package(
    module: nn.Module, graph: Graph, max_batch: int, device: torch.device, path: Path
) -> None:
    """Compile a module and package it.

    Args:
        module: on the device, in eval mode.
        graph: its inputs.
        max_batch: largest batch it will take.
        device: where it will run.
        path: of the package.

    Raises:
        ExportError: there is no C++ compiler, or it or Inductor failed.
    """
    from torch._inductor import aoti_compile_and_package

    # export specialises batches of 0 and 1, so a dynamic one is traced with 2
    rows = min(2, max_batch)
    inputs = tuple(torch.zeros(rows, *shape, device=device) for shape in graph.traced().values())
    batch = torch.export.Dim("batch", max=max_batch) if max_batch > 1 else None
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its own internals
            program = torch.export.export(
                module, inputs, dynamic_shapes=tuple(dynamic_shapes(graph, batch).values())
            )
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=INDUCTOR)
    except Exception as error:  # the compiler's and Inductor's errors share no base class
        raise ExportError(
            f"AOTInductor could not compile {path.name}: {type(error).__name__}: {error}\n"
            f"it needs a C++ compiler: apt install g++, or set CXX to one; {_cuda_needs(device)}and memory, "
            f"of which a smaller --max-batch takes less"
        ) from error


def _cuda_needs(device: torch.device) -> str:
    """What its code for a GPU is compiled against, beside the compiler; nothing for a CPU."""
    if device.type != "cuda":
        return ""
    release = torch.version.cuda or "of torch"
    return (
        f"the headers of CUDA {release} (cuda.h): the toolkit, with CUDA_HOME set to it, or "
        f"pip install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl of that release; the driver's "
        f"libcuda.so where the linker looks (LIBRARY_PATH, for -lcuda); "
    )
