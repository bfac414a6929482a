"""ComfyUI nodes: NOISE + CONDITIONING + engine in, golden NOISE out.

ComfyUI reads the two names below from this folder. The imports are absolute, so that the folder can be
linked into `custom_nodes` while the package is installed with pip. See `docs/comfyui.md`.
"""

from npnet_runtime.integrations.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
