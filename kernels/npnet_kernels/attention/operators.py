"""Registration of window attention with PyTorch. Importing it registers `npnet::window_attention`.

`triton_op` shows the launches to `torch.compile` and AOTInductor, which packages the compiled kernels.
"""

from torch import Tensor
from torch.library import triton_op

from npnet_kernels.attention.launch import launch_window_attention
from npnet_kernels.attention.reference import window_attention_reference


@triton_op("npnet::window_attention", mutates_args={})
def _window_attention(
    x: Tensor,
    index: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    score_bias: Tensor,
    eps: float,
    backend: str,
) -> Tensor:
    run = window_attention_reference if backend == "torch" else launch_window_attention
    return run(x, index, norm_weight, norm_bias, weight, bias, score_bias, eps)
