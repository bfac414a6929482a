"""What differs between releases of diffusers when a model is loaded."""

from __future__ import annotations

import torch

_RENAMED = (0, 40)  # the release that calls `torch_dtype` `dtype`, and warns of the old name


def dtype_option(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The argument of `from_pretrained` that sets the dtype of weights, as this diffusers calls it."""
    import diffusers

    release = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    return {"dtype" if release >= _RENAMED else "torch_dtype": dtype}
