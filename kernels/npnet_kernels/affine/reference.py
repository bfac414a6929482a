"""The text affine in plain PyTorch."""

from torch import Tensor
from torch.nn import functional


def text_affine_reference(prompt_embeds_BTD: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`flatten(P) @ W^T + b` in float32, `(B, 2C)`."""
    return functional.linear(prompt_embeds_BTD.flatten(1).float(), weight.float(), bias.float())
