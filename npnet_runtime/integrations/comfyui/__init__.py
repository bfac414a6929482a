"""ComfyUI nodes: NOISE + CONDITIONING + engine in, golden NOISE out.

ComfyUI reads the two names below from a folder in `custom_nodes`: this one, linked; the one that
`python -m npnet_runtime.integrations.comfyui` makes; or a clone of the repository. See `docs/comfyui.md`.
"""

from npnet_runtime.integrations.comfyui.files import register_folders
from npnet_runtime.integrations.comfyui.nodes import mappings

register_folders()
NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = mappings()

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
