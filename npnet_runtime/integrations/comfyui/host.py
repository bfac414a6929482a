"""What the nodes ask of ComfyUI itself; each thing has an answer outside of it, for scripts and tests."""

from __future__ import annotations

import logging
from typing import Any

import torch

from npnet_runtime.errors import InputError
from npnet_runtime.inputs.checks import DEVICES

AUTO = "auto"
_PLACE = "model/sampling/noise"
_log = logging.getLogger("npnet_runtime.comfyui")


def registered_nodes() -> dict[str, Any]:
    """The nodes that ComfyUI has so far, its own before those of any folder."""
    try:
        import nodes
    except ImportError:
        return {}
    return getattr(nodes, "NODE_CLASS_MAPPINGS", {})


def noise_menu() -> str:
    """The menu in which this ComfyUI keeps its nodes of noise: it has moved them before."""
    own = registered_nodes().get("RandomNoise")
    return str(getattr(own, "CATEGORY", None) or _PLACE)


def device_names() -> list[str]:
    """What a widget for the device offers."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [AUTO, "cpu", *(f"cuda:{index}" for index in range(count))]


def choose_device(name: str, engine_bytes: int) -> torch.device | None:
    """The device that a widget names, with room made there; None, our default, for `auto` outside of ComfyUI.

    Raises:
        InputError: there is no such device.
    """
    if name not in device_names():
        raise InputError(f"device: expected {', '.join(device_names())}, given {name}")
    try:
        from comfy import model_management
    except ImportError:
        return None if name == AUTO else torch.device(name)
    device = model_management.get_torch_device() if name == AUTO else torch.device(name)
    if device.type not in DEVICES:
        return torch.device("cpu")  # Apple's, Intel's: the result goes to the CPU anyway
    model_management.free_memory(engine_bytes, device)
    return device


def say(text: str, node: str | None = None) -> None:
    """Tell the user: on the console, and on the node where ComfyUI can show it.

    Args:
        text: one line.
        node: id of the node in the graph.
    """
    _log.info("Golden Noise: %s", text)
    if node is None:
        return
    try:
        from server import PromptServer
    except ImportError:
        return
    show = getattr(getattr(PromptServer, "instance", None), "send_progress_text", None)
    if show is not None:
        show(text, node)
