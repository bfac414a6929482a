"""Which driver runs the Jacobi iterations: one cooperative launch for many, or one launch for each phase."""

import ctypes
import os
import sys
from functools import lru_cache
from typing import Literal, get_args

import torch

from npnet_kernels.backends import interpreting
from npnet_kernels.errors import SVDInputError

Driver = Literal["persistent", "phases"]
VARIABLE = "NPNET_JACOBI_DRIVER"
"""Environment variable that forces a driver, to compare them or to get around a fault."""

_COOPERATIVE_LAUNCH = 95  # CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH


def choose_driver(*, cooperative: bool, interpreting: bool = False, forced: str = "") -> tuple[Driver, str]:
    """The driver, and why.

    Args:
        cooperative: the device lets a kernel wait for all its programs.
        interpreting: Triton's interpreter runs, one program after another.
        forced: the value of `VARIABLE`, empty for a free choice.

    Raises:
        SVDInputError: `forced` is no driver, or one that cannot run here.
    """
    if forced and forced not in get_args(Driver):
        raise SVDInputError(f"{VARIABLE}: expected one of {', '.join(get_args(Driver))}; given {forced!r}")
    if forced == "phases":
        return "phases", f"{VARIABLE} asks for it"
    if interpreting:
        return "phases", "the interpreter runs one program after another"
    if not cooperative:
        if forced:
            raise SVDInputError(
                f"{VARIABLE}={forced}: this device has no cooperative launches. Unset the variable"
            )
        return "phases", "this device has no cooperative launches"
    return "persistent", f"{VARIABLE} asks for it" if forced else "two cooperative launches"


def driver_for(device: torch.device) -> tuple[Driver, str]:
    """`choose_driver` for `device`, as things are."""
    return choose_driver(
        cooperative=device.type == "cuda" and cooperative_launch(_index(device)),
        interpreting=interpreting(),
        forced=os.environ.get(VARIABLE, ""),
    )


@lru_cache(maxsize=16)
def cooperative_launch(index: int) -> bool:
    """Whether CUDA device `index` has cooperative launches. PyTorch does not tell, the driver does."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:  # a GPU of another maker
        return False
    value = ctypes.c_int(0)
    status = driver.cuDeviceGetAttribute(ctypes.byref(value), _COOPERATIVE_LAUNCH, index)
    return status == 0 and value.value == 1


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
