"""The models that released NPNet weights exist for."""

from __future__ import annotations

from dataclasses import dataclass

from npnet_runtime.errors import ConfigError
from npnet_runtime.networks.npnet_config import NPNetConfig


@dataclass(frozen=True)
class Source:
    """A file of weights on the Hugging Face hub.

    Args:
        repository: `owner/name`.
        filename: within it.
        sha256: of the file, where it is known; another file is refused then.
    """

    repository: str
    filename: str
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}:{self.filename}"


@dataclass(frozen=True)
class ModelSpec:
    """A text-to-image model and the NPNet weights trained for it.

    Args:
        name: what `npnet-export --model` takes.
        config: shapes of its noise, text and network.
        sources: where its weights are on the hub: the first that can be had is taken.
        base_model: hub repository of the text-to-image model.
        pipeline_class: its class in diffusers.
        guidance_scale: classifier-free guidance the weights were trained and evaluated with.
    """

    name: str
    config: NPNetConfig
    sources: tuple[Source, ...]
    base_model: str
    pipeline_class: str
    guidance_scale: float

    @property
    def description(self) -> str:
        """Where the weights are, in words."""
        return f"{' or '.join(map(str, self.sources))} on the Hugging Face hub"


def _released(name: str) -> tuple[Source, ...]:
    """The safetensors, which hold nothing but tensors, before the authors' own pickle of the same weights."""
    return (
        Source("LucipherDev/Golden-Noise-NPNets", f"{name}.safetensors"),
        Source("Klayand/GoldenNoiseModel", f"{name}.pth"),
    )


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="sdxl",
            config=NPNetConfig(),
            sources=_released("sdxl"),
            base_model="stabilityai/stable-diffusion-xl-base-1.0",
            pipeline_class="StableDiffusionXLPipeline",
            guidance_scale=5.5,
        ),
        ModelSpec(
            name="dreamshaper-xl-v2-turbo",
            config=NPNetConfig(),
            sources=_released("dreamshaper"),
            base_model="Lykon/dreamshaper-xl-v2-turbo",
            pipeline_class="StableDiffusionXLPipeline",
            guidance_scale=3.5,
        ),
        ModelSpec(
            name="hunyuan-dit",
            config=NPNetConfig(text_dim=1024),
            sources=_released("dit"),
            base_model="Tencent-Hunyuan/HunyuanDiT-Diffusers",
            pipeline_class="HunyuanDiTPipeline",
            guidance_scale=5.0,
        ),
    )
}


def get_model(name: str) -> ModelSpec:
    """The registered model of that name.

    Raises:
        ConfigError: no such model.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}: expected one of {', '.join(MODELS)}")
    return MODELS[name]
