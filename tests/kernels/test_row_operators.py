"""The operators on rows, on the CPU: arguments that do not fit, and the caller's settings."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from npnet_kernels import BackendUnavailableError, KernelInputError
from npnet_kernels.attention.window_attention import _check_size, window_attention
from npnet_kernels.embedding.embed_patches import embed_patches
from npnet_kernels.features.residual_map import residual_map
from npnet_kernels.linear.fused_linear import fused_linear

Draw = Callable[..., torch.Tensor]
Arguments = dict[str, Any]


def index(count: int, rows: int) -> torch.Tensor:
    return (torch.arange(count) % rows).int()


def attention_inputs(draw: Draw) -> Arguments:
    return {
        "x": draw(2, 8, 6), "index": index(8, 8), "norm_weight": draw(6), "norm_bias": draw(6),
        "weight": draw(18, 6), "bias": draw(18), "score_bias": draw(2, 3, 4, 4),
    }  # fmt: skip


def linear_inputs(draw: Draw) -> Arguments:
    return {
        "x": draw(2, 8, 6), "weight": draw(5, 12), "bias": draw(5), "norm": (draw(12), draw(12)),
        "index": index(8, 8), "residual": draw(2, 4, 5), "residual_index": index(4, 4), "gelu": True,
    }  # fmt: skip


def embedding_inputs(draw: Draw) -> Arguments:
    return {
        "noise": draw(2, 4, 6, 5), "scale_shift": draw(2, 8), "pixel_index": index(12, 30),
        "weight": draw(7, 16), "bias": draw(7), "norm": (draw(7), draw(7)), "dtype": torch.float32,
    }  # fmt: skip


def features_inputs(draw: Draw) -> Arguments:
    return {
        "x": draw(2, 9, 6), "index": index(9, 9), "norm": (draw(6), draw(6)), "column_index": index(10, 6),
        "weight": draw(4, 3), "bias": draw(4),
    }  # fmt: skip


OPERATORS: dict[str, tuple[Callable[..., torch.Tensor], Callable[[Draw], Arguments]]] = {
    "attention": (window_attention, attention_inputs),
    "linear": (fused_linear, linear_inputs),
    "embedding": (embed_patches, embedding_inputs),
    "features": (residual_map, features_inputs),
}
ZEROS = torch.zeros
WRONG: list[tuple[str, Arguments, str]] = [
    ("attention", {"x": ZEROS(8, 6)}, r"x: expected shape \(B, N, C\)"),
    ("attention", {"x": ZEROS(2, 8, 6, dtype=torch.float64)}, "x: expected torch.float32"),
    ("attention", {"x": ZEROS(2, 8, 6, dtype=torch.half)}, "weight: expected torch.float16"),
    ("attention", {"index": torch.arange(8)}, "index: expected torch.int32"),
    ("attention", {"index": index(7, 7)}, r"index: expected shape \(8,\)"),
    ("attention", {"index": index(16, 8)[::2]}, "index: expected a contiguous"),
    ("attention", {"norm_bias": ZEROS(5)}, "norm_bias"),
    ("attention", {"weight": ZEROS(6, 18)}, r"weight: expected shape \(18, 6\)"),
    ("attention", {"bias": ZEROS(6)}, r"bias: expected shape \(18,\)"),
    ("attention", {"score_bias": ZEROS(2, 3, 3, 3)}, "L a divisor of N = 8"),
    ("attention", {"score_bias": ZEROS(2, 4, 4, 4)}, "one of C = 6"),
    ("attention", {"score_bias": ZEROS(3, 3, 4, 4)}, "one for each of 2; given 3"),
    ("attention", {"score_bias": ZEROS(2, 3, 4, 4).half()}, "score_bias: expected torch.float32"),
    ("attention", {"backend": "magic"}, "backend"),
    ("linear", {"x": ZEROS(2, 0, 6)}, r"x: expected shape \(B, N, C\)"),
    ("linear", {"weight": ZEROS(5, 13)}, r"weight: expected shape \(C', pieces \* 6\)"),
    ("linear", {"index": None}, "expected 6 terms without an index; given 12"),
    ("linear", {"index": index(7, 7)}, "index: expected 2 rows of the input for each"),
    ("linear", {"norm": (ZEROS(6), ZEROS(6))}, r"norm weight: expected shape \(12,\)"),
    ("linear", {"bias": ZEROS(4)}, r"bias: expected shape \(5,\)"),
    ("linear", {"residual": ZEROS(2, 8, 5)}, r"residual: expected shape \(2, 4, 5\)"),
    ("linear", {"residual": ZEROS(2, 4, 5).half()}, "residual: expected torch.float32"),
    ("linear", {"residual": None}, "residual_index: expected a residual"),
    ("linear", {"residual_index": index(8, 4)}, r"residual_index: expected shape \(4,\)"),
    ("linear", {"weight": ZEROS(5, 12, device="meta")}, "weight: expected on cpu"),
    ("embedding", {"noise": ZEROS(4, 6, 5)}, r"noise: expected shape \(B, C, H, W\)"),
    ("embedding", {"scale_shift": ZEROS(2, 4)}, r"scale_shift: expected shape \(2, 8\)"),
    ("embedding", {"weight": ZEROS(7, 15)}, "pixels of a patch"),
    ("embedding", {"weight": ZEROS(7, 16).half()}, "weight: expected torch.float32"),
    ("embedding", {"pixel_index": index(11, 30)}, "pixel_index: expected 4 pixels for each patch"),
    ("embedding", {"norm": (ZEROS(7), ZEROS(6))}, r"norm bias: expected shape \(7,\)"),
    ("embedding", {"dtype": torch.float64}, "dtype: expected one of"),
    ("features", {"x": ZEROS(2, 9)}, "x: expected shape"),
    ("features", {"weight": ZEROS(4, 4)}, "n \\* n = 9 tokens"),
    ("features", {"column_index": torch.arange(10)}, "column_index: expected torch.int32"),
    ("features", {"bias": ZEROS(3)}, r"bias: expected shape \(4,\)"),
]


@pytest.mark.parametrize(("operator", "change", "message"), WRONG)
def test_wrong_arguments(operator: str, change: Arguments, message: str, gaussian: Draw) -> None:
    function, inputs = OPERATORS[operator]
    with pytest.raises(KernelInputError, match=message):
        function(**{**inputs(gaussian), **change})


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_kernel_is_not_replaced_in_silence(operator: str, gaussian: Draw) -> None:
    function, inputs = OPERATORS[operator]
    with pytest.raises(BackendUnavailableError, match="backend='torch'"):
        function(**inputs(gaussian), backend="triton")


def test_windows_beyond_the_kernel() -> None:
    with pytest.raises(
        KernelInputError, match="up to 64 tokens and heads of up to 64 channels; given 81 and 8"
    ):
        _check_size(ZEROS(1, 81, 8), ZEROS(1, 1, 81, 81))


@pytest.mark.parametrize("operator", OPERATORS)
def test_untouched_by_autocast(operator: str, gaussian: Draw) -> None:
    function, inputs = OPERATORS[operator]
    expected = function(**inputs(gaussian))
    with torch.autocast("cpu"):
        assert torch.equal(function(**inputs(gaussian)), expected)
