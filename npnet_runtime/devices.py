"""Names of devices."""

from __future__ import annotations

import torch

from npnet_runtime.errors import BackendError


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, with an index if it is a CUDA device; by default CUDA where there is any.

    Raises:
        BackendError: no such kind of device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BackendError(f"device: expected cpu, cuda or cuda:N, given {device!r}") from error
    if resolved.type == "cuda" and resolved.index is None:
        index = torch.cuda.current_device() if torch.cuda.is_available() else 0
        return torch.device("cuda", index)
    return torch.device("cpu") if resolved.type == "cpu" else resolved  # cpu:0 is cpu
