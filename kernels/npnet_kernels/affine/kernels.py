"""Triton kernels of the text affine. Import only where Triton is installed.

The product is 8 outputs of 157,696 terms: all of it is reading the weights. The reduction axis is split
over the device, every program keeps its slice of the weights in registers while it goes through the batch,
and a second kernel adds the slices in a fixed order, so that a result is the same on every run and in every
batch.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl


@triton.jit
def partial_kernel(
    x_ptr, weight_ptr, partial_ptr, batch, outputs, terms, x_stride_b, weight_stride_o, weight_stride_k,
    PRECISION: tl.constexpr, BLOCK_B: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`partial[slice, b, o] = sum over the slice of x[b, k] * weight[o, k]`. Grid (slices,)."""
    piece = tl.program_id(0).to(tl.int64)
    k = piece * BLOCK_K + tl.arange(0, BLOCK_K)
    o = tl.arange(0, OUTPUTS)
    weight_mask = (k < terms)[:, None] & (o < outputs)[None, :]
    weight_tile = weight_ptr + k[:, None] * weight_stride_k + o[None, :] * weight_stride_o
    weight = tl.load(weight_tile, mask=weight_mask, other=0.0).to(tl.float32)
    for start in range(0, batch, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B)
        x_tile = x_ptr + b.to(tl.int64)[:, None] * x_stride_b + k[None, :]
        x = tl.load(x_tile, mask=(b < batch)[:, None] & (k < terms)[None, :], other=0.0)
        products = tl.dot(x.to(tl.float32), weight, input_precision=PRECISION)
        row = partial_ptr + (piece * batch + b)[:, None] * outputs + o[None, :]
        tl.store(row, products, mask=(b < batch)[:, None] & (o < outputs)[None, :])


@triton.jit
def sum_kernel(
    partial_ptr, bias_ptr, out_ptr, batch, outputs, slices,
    OUTPUTS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """`out[b, o] = bias[o] + sum over the slices`, in a fixed order. Grid (B,)."""
    b = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, OUTPUTS)
    total = tl.zeros((BLOCK_S, OUTPUTS), dtype=tl.float32)
    for start in range(0, slices, BLOCK_S):
        piece = start + tl.arange(0, BLOCK_S).to(tl.int64)
        row = partial_ptr + (piece * batch + b)[:, None] * outputs + o[None, :]
        total += tl.load(row, mask=(piece < slices)[:, None] & (o < outputs)[None, :], other=0.0)
    bias = tl.load(bias_ptr + o, mask=o < outputs, other=0.0).to(tl.float32)
    tl.store(out_ptr + b * outputs + o, tl.sum(total, axis=0) + bias, mask=o < outputs)
