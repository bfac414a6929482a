"""Registration of the fused linear layer with PyTorch. Importing it registers `npnet::fused_linear`.

`triton_op` shows the launches to `torch.compile` and AOTInductor, which packages the compiled kernels.
"""

from torch import Tensor
from torch.library import triton_op

from npnet_kernels.linear.launch import launch_fused_linear
from npnet_kernels.linear.reference import fused_linear_reference


@triton_op("npnet::fused_linear", mutates_args={})
def _fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    index: Tensor | None,
    residual: Tensor | None,
    residual_index: Tensor | None,
    gelu: bool,
    eps: float,
    backend: str,
) -> Tensor:
    run = fused_linear_reference if backend == "torch" else launch_fused_linear
    return run(x, weight, bias, norm_weight, norm_bias, index, residual, residual_index, gelu, eps)
