"""Triton kernels of the statistics. Import only where Triton is installed."""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl


@triton.jit
def statistics_kernel(
    noise_ptr, partial_ptr, peak_ptr,
    channels, height, width, stride_b, stride_c, stride_h, stride_w, chunks,
    PEAK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of one chunk of one latent, by two passes over registers.

    Grid (chunks, B). Writes `partial[b, 0, chunk]` (mean) and `partial[b, 1, chunk]` (squared deviations);
    with PEAK zero to `peak[b]`, where the maximum of a later kernel begins.
    """
    chunk = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    index = chunk * BLOCK + tl.arange(0, BLOCK)
    size = channels * height * width
    inside = index < size
    x = index % width
    y = index // width % height
    c = index // (width * height)
    offset = b * stride_b + c * stride_c + y * stride_h + x * stride_w
    value = tl.load(noise_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(size - chunk * BLOCK, BLOCK).to(tl.float32)
    mean = tl.sum(value) / count
    deviation = tl.where(inside, value - mean, 0.0)
    row = partial_ptr + b * 2 * chunks + chunk
    tl.store(row, mean)
    tl.store(row + chunks, tl.sum(deviation * deviation))
    if PEAK and chunk == 0:
        tl.store(peak_ptr + b, 0)


@triton.jit
def merge_statistics(
    partial_ptr, b, size, chunks, EPS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr
):
    """Mean and reciprocal deviation from the chunks (Chan, Golub and LeVeque 1983, equation 2.1)."""
    index = tl.arange(0, CHUNKS)
    inside = index < chunks
    row = partial_ptr + b * 2 * chunks + index
    mean = tl.load(row, mask=inside, other=0.0)
    squares = tl.load(row + chunks, mask=inside, other=0.0)
    count = tl.maximum(tl.minimum(size - index * CHUNK, CHUNK), 0).to(tl.float32)
    total_mean = tl.sum(mean * count) / size
    distance = mean - total_mean
    variance = (tl.sum(squares) + tl.sum(count * distance * distance)) / size
    return total_mean, 1.0 / tl.sqrt(variance + EPS)
