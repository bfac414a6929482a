"""Write a checkpoint of SDXL with random weights by a ComfyUI's modules: `random_sdxl.py COMFYUI FILE`.

It has every tensor that ComfyUI's CheckpointLoaderSimple asks for, in float16: 7 GB. Its images are noise.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file
from torch import Tensor

AUTOENCODER = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "num_head_channels": 64,
    "num_heads": -1,
    "legacy": False,
    "use_temporal_attention": False,
    "dtype": torch.float16,
}


def drawn(state: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of unit gain, unit scales of norms, no biases."""
    made = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            made[name] = tensor.clone()
        elif tensor.ndim > 1:
            fan_in = tensor[0].numel() or 1
            made[name] = torch.randn(tensor.shape, generator=generator).mul_(fan_in**-0.5).half()
        else:
            made[name] = torch.full_like(tensor, float(name.endswith("weight")), dtype=torch.float16)
    return made


def main(comfyui: str, path: str) -> None:
    """Write the file."""
    sys.path.insert(0, comfyui)
    sys.argv = [sys.argv[0], "--cpu"]  # ComfyUI reads it
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd
    import comfy.supported_models
    from comfy.ldm.models.autoencoder import AutoencoderKL

    config = comfy.supported_models.SDXL(UNET)
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    unet = config.get_model({}).diffusion_model.state_dict()
    tensors |= config.process_unet_state_dict_for_saving(drawn(unet, generator))
    del unet
    clip = comfy.sd.CLIP(config.clip_target(), model_options={"dtype": torch.float16})
    tensors |= config.process_clip_state_dict_for_saving(drawn(clip.get_sd(), generator))
    vae = AutoencoderKL(ddconfig=AUTOENCODER, embed_dim=4).state_dict()
    tensors |= config.process_vae_state_dict_for_saving(drawn(vae, generator))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
