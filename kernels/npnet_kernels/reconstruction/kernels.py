"""Triton kernels of the reconstruction. Import only where Triton is installed.

A program owns a tile of one channel of one latent, so channel, scale and shift are scalars; the grid layout
of the matrix is index arithmetic, and no permuted copy exists. Every dimension is masked.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl

from npnet_kernels.statistics.kernels import merge_statistics


@triton.jit
def _finish(
    spectral, value, y, x, tile, b, channel, channels, height, width,
    partial_ptr, scale_shift_ptr, residual_ptr, residual_rows, row_ratio,
    text_weight, residual_weight, chunks, EPS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Add the text and residual terms to a tile of the spectral part."""
    mean, rstd = merge_statistics(partial_ptr, b, channels * height * width, chunks, EPS, CHUNK, CHUNKS)
    scale = tl.load(scale_shift_ptr + b * 2 * channels + channel).to(tl.float32)
    shift = tl.load(scale_shift_ptr + b * 2 * channels + channels + channel).to(tl.float32)
    text = (value - mean) * rstd * (1.0 + scale) + shift
    # The index as `interpolate(mode="nearest")` rounds it: one float32 product, then floor.
    row_ratio = tl.cast(row_ratio, tl.float32)  # AOTInductor takes scalars for double precision
    row = tl.minimum(tl.floor(y.to(tl.float32) * row_ratio).to(tl.int32), residual_rows - 1)
    plane = residual_ptr + (b * channels + channel) * residual_rows * width
    residual = tl.load(plane + row * width + x, mask=tile, other=0.0).to(tl.float32)
    text_weight = tl.cast(text_weight, tl.float32)
    residual_weight = tl.cast(residual_weight, tl.float32)
    return spectral + text_weight * text + residual_weight * residual


@triton.jit
def reconstruct_kernel(
    noise_ptr, u_ptr, f_ptr, vh_ptr, partial_ptr, scale_shift_ptr, residual_ptr, out_ptr,
    channels, side, height, width, rank,
    noise_stride_b, noise_stride_c, noise_stride_h, noise_stride_w,
    u_stride_b, u_stride_r, u_stride_k, vh_stride_b, vh_stride_k, vh_stride_c,
    residual_rows, row_ratio, text_weight, residual_weight, chunks,
    EPS: tl.constexpr, FINISH: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`fold(M + (U * f) Vh)`; with FINISH also text and residual. Grid (tiles of a channel, C, B)."""
    tiles_w = tl.cdiv(width, BLOCK_W)
    y = (tl.program_id(0) // tiles_w * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]
    x = (tl.program_id(0) % tiles_w * BLOCK_W + tl.arange(0, BLOCK_W))[None, :]
    channel = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    tile = (y < height) & (x < width)

    row = channel // side * height + y
    column = channel % side * width + x
    k = tl.arange(0, BLOCK_K)
    u_tile = u_ptr + b * u_stride_b + row * u_stride_r + k[None, :] * u_stride_k
    vh_tile = vh_ptr + b * vh_stride_b + k[:, None] * vh_stride_k + column * vh_stride_c
    correction = tl.zeros((BLOCK_H, BLOCK_W), dtype=tl.float32)
    for start in range(0, rank, BLOCK_K):
        left = rank - start
        u = tl.load(u_tile, mask=(y < height) & (k[None, :] < left), other=0.0)
        f = tl.load(f_ptr + b * rank + start + k, mask=k < left, other=0.0)
        vh = tl.load(vh_tile, mask=(k[:, None] < left) & (x < width), other=0.0)
        correction = tl.dot(u * f[None, :], vh, correction, input_precision=PRECISION)
        u_tile += BLOCK_K * u_stride_k
        vh_tile += BLOCK_K * vh_stride_k

    noise_tile = noise_ptr + b * noise_stride_b + channel * noise_stride_c
    value = tl.load(noise_tile + y * noise_stride_h + x * noise_stride_w, mask=tile, other=0.0).to(tl.float32)
    result = value + correction
    if FINISH:
        result = _finish(
            result, value, y, x, tile, b, channel, channels, height, width,
            partial_ptr, scale_shift_ptr, residual_ptr, residual_rows, row_ratio,
            text_weight, residual_weight, chunks, EPS, CHUNK, CHUNKS,
        )  # fmt: skip
    out_tile = out_ptr + (b * channels + channel) * height * width
    tl.store(out_tile + y * width + x, result.to(out_ptr.dtype.element_ty), mask=tile)


@triton.jit
def combine_kernel(
    spectral_ptr, noise_ptr, partial_ptr, scale_shift_ptr, residual_ptr, out_ptr, peak_ptr,
    channels, height, width, noise_stride_b, noise_stride_c, noise_stride_h, noise_stride_w,
    residual_rows, row_ratio, text_weight, residual_weight, chunks,
    EPS: tl.constexpr, PEAK: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """The text and residual terms on top of a given spectral part. Grid (tiles of a channel, C, B).

    With PEAK also the bits of the largest magnitude, as integers: these order magnitudes, NaN above infinity,
    and a maximum of integers is the same in any order.
    """
    tiles_w = tl.cdiv(width, BLOCK_W)
    y = (tl.program_id(0) // tiles_w * BLOCK_H + tl.arange(0, BLOCK_H))[:, None]
    x = (tl.program_id(0) % tiles_w * BLOCK_W + tl.arange(0, BLOCK_W))[None, :]
    channel = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    tile = (y < height) & (x < width)
    noise_tile = noise_ptr + b * noise_stride_b + channel * noise_stride_c
    value = tl.load(noise_tile + y * noise_stride_h + x * noise_stride_w, mask=tile, other=0.0).to(tl.float32)
    plane = (b * channels + channel) * height * width + y * width + x
    result = _finish(
        tl.load(spectral_ptr + plane, mask=tile, other=0.0), value, y, x, tile, b, channel, channels, height,
        width, partial_ptr, scale_shift_ptr, residual_ptr, residual_rows, row_ratio,
        text_weight, residual_weight, chunks, EPS, CHUNK, CHUNKS,
    )  # fmt: skip
    tl.store(out_ptr + plane, result.to(out_ptr.dtype.element_ty), mask=tile)
    if PEAK:
        bits = result.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # `abs` may give a NaN of either sign
        tl.atomic_max(peak_ptr + b, tl.max(tl.where(tile, bits, 0)), sem="relaxed")
