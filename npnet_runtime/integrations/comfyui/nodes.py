"""The two nodes, in ComfyUI's V1 schema (docs.comfy.org/custom-nodes/backend/server_overview)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, get_args

import torch

from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.errors import BundleError, NPNetError
from npnet_runtime.golden import GoldenNoise
from npnet_runtime.inputs.checks import DEVICES
from npnet_runtime.inputs.prompts import TokenPolicy
from npnet_runtime.inputs.resolution import ResolutionPolicy
from npnet_runtime.integrations.comfyui.noise import ComfyGoldenNoise, positive_prompt

CATEGORY = "sampling/custom_sampling/noise"
FOLDER = "npnet"  # in ComfyUI's folder of models


class LoadGoldenNoiseEngine:
    """Opens an engine bundle, on the device that ComfyUI uses."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Load an engine bundle written by npnet-export."
    RETURN_TYPES: ClassVar = ("NPNET_ENGINE",)
    RETURN_NAMES: ClassVar = ("engine",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widgets of the node."""
        path = {"default": "sdxl", "tooltip": f"A folder, or the name of one in ComfyUI's models/{FOLDER}"}
        tokens = {"default": "error", "tooltip": "For prompts longer than the 77 tokens the network reads"}
        sizes = {"default": "error", "tooltip": "For other sizes than 1024 x 1024"}
        return {
            "required": {
                "engine": ("STRING", path),
                "long_prompts": (list(get_args(TokenPolicy)), tokens),
                "other_sizes": (list(get_args(ResolutionPolicy)), sizes),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, engine: str) -> bool | str:
        """True, or what is wrong with the path: said before anything of the workflow runs."""
        try:
            EngineBundle.open(find_engine(engine))
        except NPNetError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, engine: str, **_: Any) -> str:
        """The digest of the bundle, so that one written anew is loaded anew."""
        return EngineBundle.open(find_engine(engine)).digest

    def load(
        self, engine: str, long_prompts: TokenPolicy, other_sizes: ResolutionPolicy
    ) -> tuple[GoldenNoise]:
        """Open the engine.

        Raises:
            BundleError: no bundle, or one that was changed.
            BackendError: nothing here can run it.
        """
        bundle = EngineBundle.open(find_engine(engine))
        device = comfy_device(sum(file.bytes for file in bundle.manifest.files.values()))
        return (GoldenNoise(bundle, device=device, tokens=long_prompts, resolution=other_sizes),)


class MakeGoldenNoise:
    """Makes the noise of a NOISE golden for a prompt."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Golden noise for the positive prompt, for SamplerCustomAdvanced and all that takes NOISE."
    RETURN_TYPES: ClassVar = ("NOISE",)
    RETURN_NAMES: ClassVar = ("golden_noise",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        return {"required": {"noise": ("NOISE",), "positive": ("CONDITIONING",), "engine": ("NPNET_ENGINE",)}}

    def make(self, noise: Any, positive: Any, engine: GoldenNoise) -> tuple[ComfyGoldenNoise]:
        """Wrap the noise; it is computed when a sampler asks for it.

        Raises:
            InputError: a conditioning of several prompts, or none.
        """
        return (ComfyGoldenNoise(noise, positive_prompt(positive), engine),)


NODE_CLASS_MAPPINGS = {
    "NPNetLoadEngine": LoadGoldenNoiseEngine,
    "NPNetGoldenNoise": MakeGoldenNoise,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "NPNetLoadEngine": "Load Golden Noise Engine",
    "NPNetGoldenNoise": "Golden Noise",
}


def find_engine(name: str) -> Path:
    """The folder that is meant: a path, or a name in ComfyUI's `models/npnet`.

    Raises:
        BundleError: an empty name.
    """
    if not name.strip():
        raise BundleError("engine: expected the folder of an engine bundle, given an empty name")
    path = Path(name).expanduser()
    try:
        import folder_paths  # ComfyUI's
    except ImportError:
        return path
    return path if path.is_dir() else Path(folder_paths.models_dir) / FOLDER / name


def comfy_device(engine_bytes: int) -> torch.device | None:
    """The device that ComfyUI computes on, with room made there; None, our default, outside of ComfyUI."""
    try:
        from comfy import model_management
    except ImportError:
        return None
    device = model_management.get_torch_device()
    if device.type not in DEVICES:
        return torch.device("cpu")  # Apple's, Intel's: the result goes to the CPU anyway
    model_management.free_memory(engine_bytes, device)
    return device
