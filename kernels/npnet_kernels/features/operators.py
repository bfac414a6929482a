"""Registration of the residual map with PyTorch. Importing it registers `npnet::residual_map`.

`triton_op` shows the launches to `torch.compile` and AOTInductor, which packages the compiled kernels.
"""

from torch import Tensor
from torch.library import triton_op

from npnet_kernels.features.launch import launch_residual_map
from npnet_kernels.features.reference import residual_map_reference


@triton_op("npnet::residual_map", mutates_args={})
def _residual_map(
    x: Tensor,
    index: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    column_index: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    backend: str,
) -> Tensor:
    run = residual_map_reference if backend == "torch" else launch_residual_map
    return run(x, index, norm_weight, norm_bias, column_index, weight, bias, eps)
