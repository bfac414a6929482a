"""Triton functions for rows, their layer norm and their product, called by the kernels of other rooms.

A *row* of a product may be gathered: the concatenation of PIECES rows of the input, found by an index that is
the same for every image. PIECES = 0 is a row as it lies.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl


@triton.jit
def row_start(index_ptr, m, inside, tokens_in, tokens_out, piece, width, PIECES: tl.constexpr):
    """Offset of the first value of a piece of the rows `m` (images times `tokens_out`)."""
    if PIECES == 0:
        return m.to(tl.int64) * width
    entry = m % tokens_out * PIECES + piece
    row = m // tokens_out * tokens_in + tl.load(index_ptr + entry, mask=inside, other=0)
    return row.to(tl.int64) * width


@triton.jit
def row_statistics(
    x_ptr, index_ptr, m, inside, tokens_in, tokens_out, width,
    EPS: tl.constexpr, PIECES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Mean and reciprocal deviation of the rows `m`, float32.

    Blocks are merged by their means and squared deviations (Chan, Golub and LeVeque 1983, equation 2.1): one
    reading, and nothing of a large mean is cancelled.
    """
    s = tl.arange(0, BLOCK_S)
    count = 0.0
    mean = tl.zeros((BLOCK_M,), dtype=tl.float32)
    squares = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for piece in range(PIECES if PIECES > 0 else 1):
        start = row_start(index_ptr, m, inside, tokens_in, tokens_out, piece, width, PIECES)
        for first in range(0, width, BLOCK_S):
            present = first + s < width
            tile = x_ptr + start[:, None] + (first + s)[None, :]
            x = tl.load(tile, mask=inside[:, None] & present[None, :], other=0.0).to(tl.float32)
            here = tl.minimum(width - first, BLOCK_S).to(tl.float32)
            block_mean = tl.sum(x, axis=1) / here
            deviation = tl.where(present[None, :], x - block_mean[:, None], 0.0)
            distance = block_mean - mean
            total = count + here
            squares += tl.sum(deviation * deviation, axis=1) + distance * distance * (count * here / total)
            mean += distance * (here / total)
            count = total
    return mean, 1.0 / tl.sqrt(squares / count + EPS)


@triton.jit
def normalise(x, mean, rstd, weight_ptr, bias_ptr, term, present):
    """A tile of rows after the layer norm, float32; zero where a term is not `present`."""
    weight = tl.load(weight_ptr + term, mask=present, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + term, mask=present, other=0.0).to(tl.float32)
    return (x.to(tl.float32) - mean[:, None]) * rstd[:, None] * weight[None, :] + bias[None, :]


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    """`total + a b`. PRECISION is one of `tl.dot`, or "widened": see `rows.reference.product_precision`."""
    if PRECISION == "widened":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    return tl.dot(a, b, total, input_precision=PRECISION)
