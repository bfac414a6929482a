"""Registration of the patch embedding with PyTorch. Importing it registers `npnet::embed_patches`.

`triton_op` shows the launches to `torch.compile` and AOTInductor, which packages the compiled kernels.
"""

import torch
from torch import Tensor
from torch.library import triton_op

from npnet_kernels.embedding.launch import launch_embed_patches
from npnet_kernels.embedding.reference import embed_patches_reference


@triton_op("npnet::embed_patches", mutates_args={})
def _embed_patches(
    noise: Tensor,
    scale_shift: Tensor,
    pixel_index: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    group_eps: float,
    eps: float,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    run = embed_patches_reference if backend == "torch" else launch_embed_patches
    return run(noise, scale_shift, pixel_index, weight, bias, norm_weight, norm_bias, group_eps, eps, dtype)
