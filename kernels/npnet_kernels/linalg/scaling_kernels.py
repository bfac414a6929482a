"""Triton kernels of the exact scaling. Import only where Triton is installed.

Magnitudes are compared as the integers that their bits spell: the order of finite floats is kept, infinity is
above them and NaN above infinity, so that no maximum can drop a NaN.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl


@triton.jit
def largest_kernel(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """`out[b, chunk]`: bits of the largest magnitude among BLOCK entries."""
    chunk, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    index = chunk * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + b * size + index, mask=index < size, other=0.0)
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    tl.store(out_ptr + b * tl.num_programs(0) + chunk, tl.max(bits))


@triton.jit
def scale_kernel(
    x_ptr, largest_ptr, out_ptr, scale_ptr, size, BLOCK: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """`out = x / scale` in float64, and the scale."""
    chunk, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    chunks = tl.num_programs(0)
    every = tl.arange(0, CHUNKS)
    bits = tl.max(tl.load(largest_ptr + b * chunks + every, mask=every < chunks, other=0))
    usable = (bits > 0) & (bits < 0x7F800000)
    exponent = tl.where(usable, (bits >> 23) - 126, 0)
    exponent = tl.minimum(tl.maximum(exponent, -120), 120).to(tl.int64)
    scale = ((exponent + 1023) << 52).to(tl.float64, bitcast=True)
    inverse = ((1023 - exponent) << 52).to(tl.float64, bitcast=True)
    index = chunk * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + b * size + index, mask=index < size, other=0.0)
    tl.store(out_ptr + b * size + index, x.to(tl.float64) * inverse, mask=index < size)
    if chunk == 0:
        tl.store(scale_ptr + b, scale)
