"""Which implementation of an operator runs: the plain PyTorch reference or the Triton kernel."""

import functools
import importlib.util
import os
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from npnet_kernels.errors import BackendUnavailableError, KernelInputError

Backend = Literal["auto", "torch", "triton"]
OLDEST_TRITON = (3, 6)
NO_TRITON = "Triton 3.6 or newer is not installed (pip install 'triton>=3.6', which torch 2.11 brings)"


@dataclass(frozen=True)
class BackendChoice:
    """The implementation chosen, and why."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.backend} ({self.reason})"


def choose_backend(
    requested: str, *, device: str, has_triton: bool, interpreting: bool = False
) -> BackendChoice:
    """Pick the implementation of `reconstruct` and `text_affine`.

    Args:
        requested: `"auto"`, `"torch"` or `"triton"`.
        device: the type of the device that holds the inputs, `"cuda"` or another.
        has_triton: Triton can be imported.
        interpreting: Triton's interpreter is on (`TRITON_INTERPRET=1`), which runs kernels on the CPU.

    Raises:
        KernelInputError: `requested` is none of the three.
        BackendUnavailableError: `"triton"` was requested where it cannot run.
    """
    if requested not in get_args(Backend):
        raise KernelInputError(
            f"backend: expected one of {', '.join(get_args(Backend))}; given {requested!r}"
        )
    if requested == "torch":
        return BackendChoice("torch", "requested")
    obstacle = None
    if not has_triton:
        obstacle = NO_TRITON
    elif device != "cuda" and not interpreting:
        obstacle = f"the inputs are on {device!r}, and the kernels are compiled for CUDA"
    if requested == "triton":
        if obstacle:
            raise BackendUnavailableError(
                f"backend 'triton' cannot run: {obstacle}. Use backend='torch' or 'auto'"
            )
        return BackendChoice("triton", "requested")
    if obstacle:
        return BackendChoice("torch", obstacle)
    if device != "cuda":
        return BackendChoice("torch", "the interpreter is for tests: ask for backend='triton'")
    return BackendChoice("triton", "CUDA inputs and Triton installed")


def choose_here(requested: str, device: torch.device) -> BackendChoice:
    """`choose_backend` for a device of this machine, with what is installed and asked for in this process."""
    return choose_backend(requested, device=device.type, has_triton=has_triton(), interpreting=interpreting())


def backend_for(x: Tensor, requested: str) -> str:
    """The implementation for operands living with `x`."""
    return choose_here(requested, x.device).backend


def needs_operator(backend: str) -> bool:
    """Whether a call has to go through a registered operator: not if nothing is launched and nobody traces.

    The CPU thus avoids the second that importing PyTorch's compiler takes, which `triton_op` needs.
    """
    return backend != "torch" or torch.compiler.is_compiling()


@functools.cache
def has_triton() -> bool:
    """Whether a Triton can be imported that compiles these kernels, found out without importing it."""
    if sys.modules.get("triton") is None and importlib.util.find_spec("triton") is None:
        return False
    for distribution in ("triton", "triton-windows", "pytorch-triton"):
        with suppress(PackageNotFoundError):
            return tuple(map(int, version(distribution).split(".")[:2])) >= OLDEST_TRITON
    return True  # without a record of its version, as a build from sources may be


def interpreting() -> bool:
    """Whether Triton's interpreter was asked for."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def device_guard(x: Tensor) -> AbstractContextManager[object]:
    """Make the GPU of `x` the current one, where Triton launches; nothing on a CPU or while tracing."""
    if not x.is_cuda or torch.compiler.is_compiling():
        return nullcontext()
    return torch.cuda.device(x.device)


def full_precision(x: Tensor) -> torch.autocast:
    """Keep the caller's autocast away from products that are float32 for a reason."""
    return torch.autocast(x.device.type, enabled=False)


def launchable(kernel: Any) -> Any:
    """What to index with a grid: the kernel as `torch.export` can see it, or bare in the interpreter."""
    if interpreting():
        return kernel
    from torch.library import wrap_triton

    return wrap_triton(kernel)
