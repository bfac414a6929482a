"""`--for PIPELINE`: a network's shapes from a look at a pipeline, before there are weights for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npnet_export.errors import ExportError
from npnet_runtime.errors import NPNetError
from npnet_runtime.networks.any_size_config import AnySizeConfig, config_for_shapes
from npnet_runtime.weights.models import MODELS

WITHOUT_WEIGHTS = ("transformer", "unet", "vae", "controlnet")
"""Parts of a pipeline that encode no prompt: their configuration is all that is needed of them."""


@dataclass(frozen=True)
class Sizes:
    """What a network of any size is made for, where it is not to be what its pipeline does by default.

    Args:
        size: height and width of the images that it is tuned and checked with, in pixels.
        least_side: see `config_for_shapes`, as the others.
        most_side: of the noise.
        most_tokens: of a prompt.
    """

    size: tuple[int, int] | None = None
    least_side: int | None = None
    most_side: int | None = None
    most_tokens: int | None = None


def config_for(pipe: Any, sizes: Sizes | None = None, **options: Any) -> tuple[AnySizeConfig, dict[str, str]]:
    """Shapes of a network of any size for a pipeline, and what it reads of its prompt by name.

    Args:
        pipe: a pipeline of diffusers, whose text encoders are called once, on the CPU.
        sizes: where they are not to be the pipeline's.
        options: of its call beside the prompt.

    Raises:
        PipelineError: golden noise cannot be attached to it.
        ConfigError: sizes that contradict each other.
    """
    from npnet_runtime.integrations.diffusers.probing import probe

    sizes = sizes or Sizes()
    if sizes.size is not None:
        options = {"height": sizes.size[0], "width": sizes.size[1], **options}
    found = probe(pipe, **options)
    embeds, prompt = found.prompt.embeds, found.prompt
    if not isinstance(embeds, Tensor):
        raise ExportError(f"{type(pipe).__name__}: expected embeddings in a tensor")
    seconds = prompt.second_embeds
    config = config_for_shapes(
        found.noise,
        (embeds.shape[1], embeds.shape[2]),
        least_side=sizes.least_side,
        most_side=sizes.most_side,
        most_tokens=sizes.most_tokens,
        pooled_dim=0 if prompt.pooled is None else prompt.pooled.shape[-1],
        second_shape=(0, 0) if seconds is None else (seconds.shape[1], seconds.shape[2]),
    )
    return config, found.reads


def load_for_probe(source: str, *, offline: bool = False) -> Any:
    """A pipeline with its text encoders, but no weights of its denoiser and autoencoder.

    Args:
        source: a folder, a repository of the hub, or a registered model's name.
        offline: do not ask the hub.

    Raises:
        ExportError: it cannot be loaded.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ExportError(f"--for needs {error.name}: pip install 'npnet-runtime[pipelines]'") from error
    from npnet_runtime.integrations.diffusers.loading import dtype_option, quiet_loading

    quiet_loading()
    source = MODELS[source].base_model if source in MODELS else str(Path(source).expanduser())
    where: dict[str, Any] = {"local_files_only": offline}
    try:
        index = diffusers.DiffusionPipeline.load_config(source, **where)
        given = {}
        for name, entry in index.items():
            if name.split("_2")[0] not in WITHOUT_WEIGHTS or not isinstance(entry, (list, tuple)):
                continue
            library, kind = entry
            if library == "diffusers" and kind is not None:
                part = getattr(diffusers, kind)
                shapes = part.load_config(source, subfolder=name, **where)
                with torch.device("meta"):
                    given[name] = part.from_config(shapes).to(torch.bfloat16).eval()
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            source, **given, **where, **dtype_option(torch.bfloat16)
        )
    except NPNetError:
        raise
    except Exception as error:  # of diffusers, transformers and the hub, which share no base class
        raise ExportError(
            f"--for {source}: expected the folder or repository of a pipeline of diffusers: {error}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe
