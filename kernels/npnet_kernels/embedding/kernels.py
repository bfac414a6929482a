"""The Triton kernel of the patch embedding. Import only where Triton is installed.

A program owns a tile of patches of one image and all columns, because the norm behind needs them. The noise
and its affine map are gathered as they are multiplied: nothing between noise and rows exists in memory.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl

from npnet_kernels.statistics.kernels import merge_statistics


@triton.jit(do_not_specialize=["patches", "chunks"])
def embed_kernel(
    noise_ptr, partial_ptr, scale_shift_ptr, pixel_ptr, weight_ptr, bias_ptr, norm_weight_ptr, norm_bias_ptr,
    out_ptr, channels, size, patches, patch_pixels, width, chunks,
    GROUP_EPS: tl.constexpr, EPS: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`layernorm(W patch(X + groupnorm(X) * (1 + scale) + shift) + b)`. Grid (tiles of patches, B).

    `size` is the number of pixels of a channel; the terms of a patch are its channels' pixels in turn.
    """
    b = tl.program_id(1).to(tl.int64)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.arange(0, WIDTH)
    k = tl.arange(0, BLOCK_K)
    inside, wanted = m < patches, n < width
    mean, rstd = merge_statistics(partial_ptr, b, channels * size, chunks, GROUP_EPS, CHUNK, CHUNKS)
    terms = channels * patch_pixels
    noise_ptr += b * channels * size
    scale_shift_ptr += b * 2 * channels
    row = tl.zeros((BLOCK_M, WIDTH), dtype=tl.float32)
    for first in range(0, terms, BLOCK_K):
        term = first + k
        present = term < terms
        channel = term // patch_pixels
        mask = inside[:, None] & present[None, :]
        pixel = m[:, None] * patch_pixels + (term % patch_pixels)[None, :]
        place = tl.load(pixel_ptr + pixel, mask=mask, other=0)
        value = tl.load(noise_ptr + channel[None, :] * size + place, mask=mask, other=0.0).to(tl.float32)
        scale = tl.load(scale_shift_ptr + channel, mask=present, other=0.0)
        shift = tl.load(scale_shift_ptr + channels + channel, mask=present, other=0.0)
        text = (value - mean) * rstd * (1.0 + scale)[None, :] + shift[None, :]
        weight_mask = present[:, None] & wanted[None, :]
        weight = tl.load(weight_ptr + n[None, :] * terms + term[:, None], mask=weight_mask, other=0.0)
        row = tl.dot(tl.where(mask, value + text, 0.0), weight, row, input_precision=PRECISION)
    row += tl.load(bias_ptr + n, mask=wanted, other=0.0)[None, :]
    # Columns beyond the width are zero so far, and must not count.
    row_mean = tl.sum(row, axis=1) / width
    deviation = tl.where(wanted[None, :], row - row_mean[:, None], 0.0)
    row_rstd = 1.0 / tl.sqrt(tl.sum(deviation * deviation, axis=1) / width + EPS)
    gain = tl.load(norm_weight_ptr + n, mask=wanted, other=0.0).to(tl.float32)
    offset = tl.load(norm_bias_ptr + n, mask=wanted, other=0.0).to(tl.float32)
    row = deviation * row_rstd[:, None] * gain[None, :] + offset[None, :]
    out = out_ptr + (b * patches + m)[:, None] * width + n[None, :]
    tl.store(out, row.to(out_ptr.dtype.element_ty), mask=inside[:, None] & wanted[None, :])
