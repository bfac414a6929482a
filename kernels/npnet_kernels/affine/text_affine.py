"""The public `text_affine`."""

import torch
from torch import Tensor

from npnet_kernels.affine.reference import text_affine_reference
from npnet_kernels.backends import Backend, backend_for, device_guard, full_precision, needs_operator
from npnet_kernels.checks import check_dtype, check_operand
from npnet_kernels.errors import KernelInputError

_MOST_OUTPUTS = 128


def text_affine(prompt_embeds: Tensor, weight: Tensor, bias: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Scale and shift of every channel from a prompt's embeddings, `flatten(P) @ W^T + b`.

    Args:
        prompt_embeds: `(B, T, D)` float16, bfloat16 or float32.
        weight: `(2C, T * D)`, any of the three dtypes, any strides, 2C <= 128.
        bias: `(2C,)`, any of the three dtypes.
        backend: `"torch"` for the plain reference, `"triton"` for the kernel.

    Returns:
        `(B, 2C)` float32, C scales then C shifts, accumulated in float32.

    Raises:
        KernelInputError: shapes, dtypes or devices do not fit together.
        BackendUnavailableError: `backend="triton"` cannot run here.
    """
    _check(prompt_embeds, weight, bias)
    chosen = backend_for(prompt_embeds, backend)
    if not needs_operator(chosen):
        with full_precision(prompt_embeds):
            return text_affine_reference(prompt_embeds, weight, bias)
    import npnet_kernels.affine.operators  # noqa: F401

    with device_guard(prompt_embeds):
        return torch.ops.npnet.text_affine(prompt_embeds, weight, bias, chosen)


def _check(prompt_embeds: Tensor, weight: Tensor, bias: Tensor) -> None:
    if prompt_embeds.dim() != 3 or 0 in prompt_embeds.shape[1:]:
        raise KernelInputError(f"prompt_embeds: expected shape (B, T, D); given {tuple(prompt_embeds.shape)}")
    check_dtype("prompt_embeds", prompt_embeds)
    terms = prompt_embeds.shape[1] * prompt_embeds.shape[2]
    outputs = weight.shape[0] if weight.dim() == 2 else 8
    check_operand("weight", weight, (outputs, terms), prompt_embeds)
    check_operand("bias", bias, (outputs,), prompt_embeds)
    if not 1 <= outputs <= _MOST_OUTPUTS:
        raise KernelInputError(f"weight: expected 1 to {_MOST_OUTPUTS} rows; given {outputs}")
