"""Registration of the text affine with PyTorch. Importing this module registers `npnet::text_affine`.

`triton_op` shows the launches to `torch.compile` and AOTInductor, which packages the compiled kernels.
"""

from torch import Tensor
from torch.library import triton_op

from npnet_kernels.affine.launch import launch_text_affine
from npnet_kernels.affine.reference import text_affine_reference


@triton_op("npnet::text_affine", mutates_args={})
def _text_affine(prompt_embeds: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
    if backend == "torch":
        return text_affine_reference(prompt_embeds, weight, bias)
    return launch_text_affine(prompt_embeds, weight, bias)
