"""The nodes, in ComfyUI's V1 schema (docs.comfy.org/custom-nodes/backend/server_overview)."""

from __future__ import annotations

from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from npnet_runtime.errors import InputError
from npnet_runtime.golden import GoldenNoise
from npnet_runtime.inputs.prompts import TokenPolicy
from npnet_runtime.inputs.resolution import ResolutionPolicy
from npnet_runtime.inputs.texts import as_prompt
from npnet_runtime.integrations.comfyui.checks import check_prompt, check_size, positive_prompt
from npnet_runtime.integrations.comfyui.host import registered_nodes, say
from npnet_runtime.integrations.comfyui.loaders import LoadEngine, LoadWeights
from npnet_runtime.integrations.comfyui.noise import ComfyGoldenNoise, PlainAndGolden, doubled

_SOCKETS = {"noise": ("NOISE",), "positive": ("CONDITIONING",), "engine": ("NPNET_ENGINE",)}
_WIDGETS = {
    "strength": (
        "FLOAT",
        {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": "0: plain noise, 1: golden"},
    ),
    "long_prompts": (
        list(get_args(TokenPolicy)),
        {"default": "truncate", "tooltip": "What the engine reads of more than 77 tokens"},
    ),
    "other_sizes": (
        list(get_args(ResolutionPolicy)),
        {"default": "transfer", "tooltip": "Other sizes than the engine was trained for"},
    ),
}


class MakeGoldenNoise:
    """Makes the noise of a NOISE golden for a prompt."""

    CATEGORY = LoadEngine.CATEGORY
    DESCRIPTION = "Golden noise for the positive prompt, for SamplerCustomAdvanced and all that takes NOISE."
    RETURN_TYPES: ClassVar = ("NOISE",)
    RETURN_NAMES: ClassVar = ("golden_noise",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        size = {"tooltip": "Optional: to hear of a size that cannot be before anything is sampled"}
        return {
            "required": {**_SOCKETS, **_WIDGETS},
            "optional": {"latent_image": ("LATENT", size)},
            "hidden": {"node": "UNIQUE_ID"},
        }

    def make(
        self,
        noise: Any,
        positive: Any,
        engine: GoldenNoise,
        strength: float = 1.0,
        long_prompts: TokenPolicy = "truncate",
        other_sizes: ResolutionPolicy = "transfer",
        latent_image: dict[str, Any] | None = None,
        node: str | None = None,
    ) -> tuple[ComfyGoldenNoise]:
        """Wrap the noise; it is computed when a sampler asks for it. The engine is not loaded again.

        Raises:
            InputError: a conditioning of several prompts, or none; a prompt or size that the widgets refuse.
        """
        manifest = engine.bundle.manifest
        prompt = positive_prompt(positive, manifest)
        if line := check_prompt(prompt, manifest, long_prompts):
            say(line, node)
        if latent_image is not None:
            check_size(tuple(latent_image["samples"].shape), manifest, other_sizes)
        golden = engine.using(tokens=long_prompts, resolution=other_sizes, strength=strength)
        return (ComfyGoldenNoise(noise, prompt, golden, other_sizes),)


class MakePlainAndGolden:
    """Plain and golden noise of the same seeds in one batch."""

    CATEGORY = LoadEngine.CATEGORY
    DESCRIPTION = "Plain beside golden: connect both outputs to the sampler, its images to Side by Side."
    RETURN_TYPES: ClassVar = ("NOISE", "LATENT")
    RETURN_NAMES: ClassVar = ("noise", "latent")
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        return {
            "required": {**_SOCKETS, "latent_image": ("LATENT",), **_WIDGETS},
            "hidden": {"node": "UNIQUE_ID"},
        }

    def make(
        self,
        noise: Any,
        positive: Any,
        engine: GoldenNoise,
        latent_image: dict[str, Any],
        strength: float = 1.0,
        long_prompts: TokenPolicy = "truncate",
        other_sizes: ResolutionPolicy = "transfer",
        node: str | None = None,
    ) -> tuple[PlainAndGolden, dict[str, Any]]:
        """Wrap the noise, and double the batch.

        Raises:
            InputError: see `MakeGoldenNoise`; or prompts that would be dealt out to the halves differently.
        """
        (golden,) = MakeGoldenNoise().make(
            noise, positive, engine, strength, long_prompts, other_sizes, latent_image, node
        )
        prompts, count = len(as_prompt(golden.prompt).embeds), len(latent_image["samples"])
        if count % prompts:
            raise InputError(
                f"positive: expected 1 prompt, or a number that divides the batch of {count}, so that plain "
                f"and golden images are of the same prompts; given {prompts}; set batch_size to {prompts}"
            )
        return PlainAndGolden(golden), doubled(latent_image)


class SideBySide:
    """Joins the images of `MakePlainAndGolden`: plain on the left, golden on the right."""

    CATEGORY = LoadEngine.CATEGORY
    DESCRIPTION = "Each plain image with its golden one on its right."
    RETURN_TYPES: ClassVar = ("IMAGE",)
    RETURN_NAMES: ClassVar = ("images",)
    FUNCTION = "join"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        gap = {"default": 8, "min": 0, "max": 128, "tooltip": "White pixels between the two"}
        return {"required": {"images": ("IMAGE",), "gap": ("INT", gap)}}

    def join(self, images: Tensor, gap: int = 8) -> tuple[Tensor]:
        """(2B, H, W, 3) -> (B, H, 2W + gap, 3).

        Raises:
            InputError: an odd number of images.
        """
        if len(images) % 2:
            raise InputError(
                f"images: expected pairs, as Plain and Golden Noise makes them, given {len(images)} images"
            )
        plain, golden = images.chunk(2)
        return (torch.cat([plain, plain.new_ones(*plain.shape[:2], gap, plain.shape[3]), golden], 2),)


class OldLoadEngine(LoadEngine):
    """As graphs of earlier versions have it: the policies belong to the engine."""

    DEPRECATED = True  # hidden from the menus

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widgets of the node."""
        policies = {name: _WIDGETS[name] for name in ("long_prompts", "other_sizes")}
        # A text, as it was: those graphs may name a folder anywhere.
        return {"required": {"engine": ("STRING", {"default": "sdxl"}), **policies}}

    def load(  # type: ignore[override]
        self, engine: str, long_prompts: TokenPolicy, other_sizes: ResolutionPolicy
    ) -> tuple[GoldenNoise, str]:
        """See `LoadEngine`."""
        golden, line = super().load(engine)
        return golden.using(tokens=long_prompts, resolution=other_sizes), line


class OldMakeGoldenNoise(MakeGoldenNoise):
    """As graphs of earlier versions have it, without widgets."""

    DEPRECATED = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        return {"required": dict(_SOCKETS)}

    def make(  # type: ignore[override]
        self, noise: Any, positive: Any, engine: GoldenNoise
    ) -> tuple[ComfyGoldenNoise]:
        """See `MakeGoldenNoise`."""
        return (ComfyGoldenNoise(noise, positive_prompt(positive, engine.bundle.manifest), engine),)


NODES: dict[str, tuple[type, str]] = {
    "NPNetRuntimeLoadEngine": (LoadEngine, "Load Golden Noise Engine"),
    "NPNetRuntimeLoadWeights": (LoadWeights, "Load Golden Noise Weights"),
    "NPNetRuntimeGoldenNoise": (MakeGoldenNoise, "Golden Noise"),
    "NPNetRuntimePlainAndGolden": (MakePlainAndGolden, "Plain and Golden Noise"),
    "NPNetRuntimeSideBySide": (SideBySide, "Side by Side (Plain, Golden)"),
}
# Their ids of earlier versions, of which other nodes use one: theirs goes first.
OLD_NODES: dict[str, tuple[type, str]] = {
    "NPNetLoadEngine": (OldLoadEngine, "Load Golden Noise Engine (old)"),
    "NPNetGoldenNoise": (OldMakeGoldenNoise, "Golden Noise (old)"),
}


def mappings() -> tuple[dict[str, type], dict[str, str]]:
    """Classes and titles of the nodes by their ids, old ids only where they are free."""
    taken = registered_nodes()
    nodes = NODES | {
        name: node
        for name, node in OLD_NODES.items()
        if name not in taken or taken[name].__module__ == __name__
    }
    return (
        {name: node for name, (node, _) in nodes.items()},
        {name: title for name, (_, title) in nodes.items()},
    )
