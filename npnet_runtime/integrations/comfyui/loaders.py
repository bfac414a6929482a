"""Nodes that give an engine: from a bundle, or from the weights themselves."""

from __future__ import annotations

from typing import Any, ClassVar

from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.errors import BackendError, BundleError, NPNetError
from npnet_runtime.golden import GoldenNoise
from npnet_runtime.integrations.comfyui.conversion import KINDS, MODELS, PRECISIONS, converted, weights_digest
from npnet_runtime.integrations.comfyui.files import FOLDER, engine_names, find, weights_names
from npnet_runtime.integrations.comfyui.host import AUTO, choose_device, device_names, noise_menu, say

HOW_ENGINE = f"make one with: npnet-export --model sdxl --engine auto --output models/{FOLDER}/sdxl"
HOW_WEIGHTS = f"download sdxl.pth and put it into models/{FOLDER}"
LINKED = ("STRING", "COMBO", "*")


class LoadEngine:
    """Opens an engine bundle."""

    CATEGORY = f"{noise_menu()}/npnet-runtime"
    DESCRIPTION = "Load an engine of golden noise, as npnet-export writes it."
    RETURN_TYPES: ClassVar = ("NPNET_ENGINE", "STRING")
    RETURN_NAMES: ClassVar = ("engine", "info")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widgets of the node; asked for anew when the user refreshes."""
        return {
            "required": {
                "engine": (engine_names(), {"tooltip": f"A folder in models/{FOLDER}"}),
                "device": (device_names(), {"default": AUTO, "tooltip": "auto: where ComfyUI computes"}),
            },
            "hidden": {"node": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls, engine: str | None = None, input_types: dict[str, str] | None = None
    ) -> bool | str:
        """True, or what is wrong: said before anything of the graph runs. What is linked is not known yet."""
        return _validate(engine, "engine", HOW_ENGINE, input_types, EngineBundle.open)

    @classmethod
    def IS_CHANGED(cls, engine: str | None = None, **_: Any) -> str:
        """The digest of the bundle, so that one written anew is loaded anew; the same for what is linked."""
        try:
            return "" if engine is None else EngineBundle.open(find(engine, "engine", HOW_ENGINE)).digest
        except NPNetError:
            return "missing"

    def load(self, engine: str, device: str = AUTO, node: str | None = None) -> tuple[GoldenNoise, str]:
        """Open the engine.

        Raises:
            InputError: no such engine or device.
            BundleError: no bundle, or one that was changed.
            BackendError: nothing here can run it.
        """
        return opened(EngineBundle.open(find(engine, "engine", HOW_ENGINE)), device, node)


class LoadWeights:
    """Makes an engine from published weights when they are first used, and keeps it."""

    CATEGORY = LoadEngine.CATEGORY
    DESCRIPTION = "Golden noise from the published .pth or .safetensors: made into an engine on first use."
    RETURN_TYPES: ClassVar = ("NPNET_ENGINE", "STRING")
    RETURN_NAMES: ClassVar = ("engine", "info")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Widgets of the node."""
        kind = {"default": "torch", "tooltip": "torch needs nothing to install; auto looks for the fastest"}
        return {
            "required": {
                "weights": (weights_names(), {"tooltip": f"A file in models/{FOLDER} or models/npnets"}),
                "model": (list(MODELS), {"default": AUTO, "tooltip": "auto: by the width of its text"}),
                "kind": (list(KINDS), kind),
                "precision": (list(PRECISIONS), {"default": AUTO, "tooltip": "auto: fp32 with kind torch"}),
                "device": (device_names(), {"default": AUTO, "tooltip": "auto: where ComfyUI computes"}),
            },
            "hidden": {"node": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls, weights: str | None = None, input_types: dict[str, str] | None = None
    ) -> bool | str:
        """See `LoadEngine`."""
        return _validate(weights, "weights", HOW_WEIGHTS, input_types, weights_digest)

    @classmethod
    def IS_CHANGED(cls, weights: str | None = None, **_: Any) -> str:
        """The sha256 of the file; the same for what is linked."""
        try:
            return "" if weights is None else weights_digest(find(weights, "weights", HOW_WEIGHTS))
        except NPNetError:
            return "missing"

    def load(
        self,
        weights: str,
        model: str = AUTO,
        kind: str = "torch",
        precision: str = AUTO,
        device: str = AUTO,
        node: str | None = None,
    ) -> tuple[GoldenNoise, str]:
        """Find the engine that was made of these weights, or make it.

        Raises:
            InputError: no such file or device.
            CheckpointError: no weights of an NPNet.
            BackendError: the export failed, in its own words; or nothing here can run the engine.
        """
        path = find(weights, "weights", HOW_WEIGHTS)
        chosen = choose_device(device, 0)
        where = "" if chosen is None else str(chosen)
        bundle = converted(path, model, kind, precision, where, node)
        try:
            return opened(bundle, device, node)
        except (BackendError, BundleError):  # of an older torch, or damaged
            return opened(converted(path, model, kind, precision, where, node, anew=True), device, node)


def opened(bundle: EngineBundle, device: str, node: str | None) -> tuple[GoldenNoise, str]:
    """A bundle on a device, and a line that says what it is."""
    size = sum(file.bytes for file in bundle.manifest.files.values())
    golden = GoldenNoise(bundle, device=choose_device(device, size))
    manifest = bundle.manifest
    line = f"{manifest.model}: {manifest.engine} in {manifest.precision} on {golden.device}"
    say(line, node)
    return golden, f"{line}\n{golden.report()}"


def _validate(
    name: str | None, widget: str, how: str, input_types: dict[str, str] | None, look: Any
) -> bool | str:
    for key, kind in (input_types or {}).items():
        if kind not in LINKED:
            return f"{key}: expected a text, given a link of type {kind}"
    if name is None:  # linked
        return True
    try:
        look(find(name, widget, how))
    except NPNetError as error:
        return str(error)
    return True
