"""Names of devices, why there is no CUDA, and what devices refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from npnet_runtime.errors import BackendError

_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_TRITON = ("Triton Error", "Failed to find C compiler")
_FORKED = (
    "CUDA was initialised before this process was forked, and cannot be used in it: start processes with the "
    "method 'spawn', or use CUDA in the children only"
)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, with an index if it is a CUDA device; by default CUDA where there is any.

    Raises:
        BackendError: no such kind of device, or a CUDA device that a fork made unusable.
    """
    if device is None:
        # A fork hides the devices that the parent uses: that is an error, not a machine without CUDA.
        device = "cuda" if torch.cuda.is_available() or torch.cuda._is_in_bad_fork() else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BackendError(f"device: expected cpu, cuda or cuda:N, given {device!r}") from error
    if resolved.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise BackendError(f"{resolved}: {_FORKED}; or pass device='cpu'")
    if resolved.type == "cuda" and resolved.index is None:
        index = torch.cuda.current_device() if torch.cuda.is_available() else 0
        return torch.device("cuda", index)
    return torch.device("cpu") if resolved.type == "cpu" else resolved  # cpu:0 is cpu


def cuda_problem() -> str | None:
    """Why torch sees no CUDA device, in its own words where it has any; None where it sees one."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return "this torch was built without CUDA; see https://pytorch.org/get-started"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # a driver that is missing or too old
        return str(error).strip().split("\n")[0]
    return "the driver shows none; see nvidia-smi and CUDA_VISIBLE_DEVICES"


@contextmanager
def device_errors() -> Iterator[None]:
    """Raise what torch says of memory and of CUDA, wherever it comes from, as an error of this package.

    Also a decorator. Anything else passes.

    Raises:
        BackendError: too little memory, CUDA refused the work, or Triton cannot compile for the device.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = _said(error)
        if isinstance(error, MemoryError) or any(words in text for words in _MEMORY):
            raise BackendError(
                f"too little memory: {text.splitlines()[0]}\n"
                f"call with a smaller batch, free some, or build the engine with a smaller --max-batch"
            ) from error
        if text.startswith("CUDA error"):
            raise BackendError(
                f"{text.splitlines()[0]}\nIs the current stream, or one that made an input, destroyed? After "
                f"other errors CUDA works only in a new process"
            ) from error
        if any(words in text for words in _TRITON):
            raise _no_kernels(text) from error
        raise
    except Exception as error:
        if type(error).__module__.startswith("triton."):  # their only common base class is Exception
            raise _no_kernels(_said(error)) from error
        raise


def _said(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def _no_kernels(text: str) -> BackendError:
    return BackendError(
        f"Triton cannot compile or launch the kernels here: {text.splitlines()[0]}\n"
        f"it needs a C compiler (apt install gcc), a folder it can write (TRITON_CACHE_DIR), and a driver no "
        f"older than its CUDA; GoldenNoise(..., kernels='torch') does without, more slowly"
    )
