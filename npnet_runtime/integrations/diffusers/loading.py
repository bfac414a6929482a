"""Loading models by diffusers: what differs between its releases, and what it need not say."""

from __future__ import annotations

import importlib
import warnings

import torch

from npnet_runtime.weights.hub import hide_progress

_RENAMED = (0, 40)  # the release that calls `torch_dtype` `dtype`, and warns of the old name


def dtype_option(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The argument of `from_pretrained` that sets the dtype of weights, as this diffusers calls it."""
    import diffusers

    release = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    return {"dtype" if release >= _RENAMED else "torch_dtype": dtype}


def quiet_loading() -> None:
    """Hide what the libraries say while they load: progress bars, and packages that are not used here."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
    for name in ("diffusers", "transformers"):
        library = importlib.import_module(f"{name}.utils.logging")
        library.set_verbosity_error()
        library.disable_progress_bar()
    hide_progress()
