"""The text affine in plain PyTorch."""

from torch import Tensor
from torch.nn import functional

from npnet_kernels.precision import widen


def text_affine_reference(prompt_embeds_BTD: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`flatten(P) @ W^T + b` in float32, `(B, 2C)`."""
    return functional.linear(widen(prompt_embeds_BTD).flatten(1), widen(weight), widen(bias))
