"""`--for PIPELINE`: a network's shapes from a look at a pipeline, before there are weights for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npnet_export.errors import ExportError
from npnet_runtime.errors import NPNetError
from npnet_runtime.networks.any_size_config import AnySizeConfig, channels_for
from npnet_runtime.weights.models import MODELS

LONGEST = 512
WITHOUT_WEIGHTS = ("transformer", "unet", "vae", "controlnet")
"""Parts of a pipeline that encode no prompt: their configuration is all that is needed of them."""


@dataclass(frozen=True)
class Sizes:
    """What a network of any size is made for, where it is not to be what its pipeline does by default.

    Args:
        size: height and width of the images that it is tuned and checked with, in pixels.
        least_side: smallest side of the noise; a quarter of its sides if left out.
        most_side: largest side; twice its sides if left out.
        most_tokens: most tokens of a prompt; those of the pipeline, and at least `LONGEST`, if left out.
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
    channels, height, width = found.noise
    widths = channels_for(channels, height, width)
    while len(widths) > 1 and min(height, width) >> (len(widths) - 1) < 2:
        widths = widths[:-1]
    stride = 1 << (len(widths) - 1)
    seconds = (0, 0) if prompt.second_embeds is None else tuple(prompt.second_embeds.shape[1:])
    tokens = max(embeds.shape[1], seconds[0])
    config = AnySizeConfig(
        latent_channels=channels,
        latent_height=height,
        latent_width=width,
        text_tokens=embeds.shape[1],
        text_dim=embeds.shape[2],
        least_side=sizes.least_side or max(stride, min(height, width) // 4),
        most_side=sizes.most_side or 2 * max(height, width),
        most_tokens=sizes.most_tokens or max(tokens, LONGEST),
        pooled_dim=0 if prompt.pooled is None else prompt.pooled.shape[-1],
        second_tokens=seconds[0],
        second_dim=seconds[1],
        channels=widths,
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
        raise ExportError(f"--for needs {error.name}: pip install 'npnet-runtime[diffusers]'") from error
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
