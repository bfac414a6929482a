"""Loading pipelines by diffusers: folders, repositories, single files; what differs between its releases."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from npnet_runtime.errors import PipelineError
from npnet_runtime.weights.hub import hide_progress

_RENAMED = (0, 40)  # the release that calls `torch_dtype` `dtype`, and warns of the old name
_PICKLED = (".ckpt", ".pt", ".pth", ".bin")


def load(
    source: str,
    dtype: torch.dtype,
    *,
    config: str | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> Any:
    """A pipeline of diffusers, on the CPU, without progress bars of its own.

    Args:
        source: a folder as `save_pretrained` writes it, `owner/repository` on the hub, or one file of
            safetensors in the layout of the model's authors.
        dtype: of its weights.
        config: of a single file: the folder or repository of a pipeline with its configuration; by default
            the repository that diffusers knows for such weights.
        revision: commit, branch or tag on the hub.
        offline: use the hub's cache only.

    Raises:
        PipelineError: it cannot be found, fetched or read, or is a pickle.
    """
    from diffusers import DiffusionPipeline

    options: dict[str, Any] = {**dtype_option(dtype), "local_files_only": offline}
    if revision is not None:
        options["revision"] = revision
    path = Path(source).expanduser()
    if path.suffix in _PICKLED and not path.is_dir():
        raise PipelineError(
            f"model {source}: expected a folder, a repository or a .safetensors file, given a pickle, which "
            "may run anything; convert it to safetensors first"
        )
    loader: Any = DiffusionPipeline
    try:
        if path.suffix == ".safetensors" and not path.is_dir():
            pipe = _from_single_file(path, config, options)
        else:
            # never a pickle
            pipe = loader.from_pretrained(source, use_safetensors=True, **options)
    except ImportError:
        raise
    except Exception as error:  # the libraries behind it share no base class
        raise PipelineError(
            f"model: expected the folder, the hub id or the .safetensors file of a pipeline of diffusers, "
            f"given {source!r}: {error}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _from_single_file(path: Path, config: str | None, options: dict[str, Any]) -> Any:
    import diffusers
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    where = {"local_files_only": options["local_files_only"]}
    if not path.is_file():
        raise OSError(f"{path}: no such file")
    if config is None:
        with safe_open(path, framework="pt") as file:  # what kind of model it is shows in names and shapes
            names = [*file.keys()]
            shapes = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
        config = fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]
    try:
        index = diffusers.DiffusionPipeline.load_config(config, **where)
    except OSError as error:
        raise OSError(
            f"its configuration is that of {config}, which cannot be read ({error}); name a folder or "
            "repository that has it with --config"
        ) from error
    kind: Any = getattr(diffusers, str(index["_class_name"]), None)
    if not hasattr(kind, "from_single_file"):
        raise ValueError(f"diffusers reads no single file of {index['_class_name']}; give a folder")
    return kind.from_single_file(str(path), config=config, **options)


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
