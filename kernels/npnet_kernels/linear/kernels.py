"""The Triton kernel of the fused linear layer. Import only where Triton is installed.

A program owns a tile of the output and goes through all terms of its rows. The rows of all images are one
long list, so that few rows an image (49 in the last stage) do not mean few rows a tile.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl

from npnet_kernels.rows.kernels import normalise, product, row_start, row_statistics


@triton.jit(do_not_specialize=["count", "tokens_in", "tokens_out"])
def linear_kernel(
    x_ptr, index_ptr, norm_weight_ptr, norm_bias_ptr, weight_ptr, bias_ptr, residual_ptr, residual_index_ptr,
    out_ptr, count, tokens_in, tokens_out, width, columns,
    EPS: tl.constexpr, PIECES: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr,
    RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """`[residual +] gelu([norm](x) W^T + b)`. Grid (tiles of rows, tiles of columns).

    PIECES as in `rows.kernels`. RESIDUAL is -1 for none, 0 for a row beside each, 1 for rows by an index.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside, wanted = m < count, n < columns
    if NORM:
        mean, rstd = row_statistics(
            x_ptr, index_ptr, m, inside, tokens_in, tokens_out, width, EPS, PIECES, BLOCK_M, BLOCK_S
        )
    terms = width * (PIECES if PIECES > 0 else 1)
    weight_row = weight_ptr + n.to(tl.int64)[None, :] * terms
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for piece in range(PIECES if PIECES > 0 else 1):
        start = row_start(index_ptr, m, inside, tokens_in, tokens_out, piece, width, PIECES)
        for first in range(0, width, BLOCK_K):
            present = first + k < width
            term = piece * width + first + k
            tile = x_ptr + start[:, None] + (first + k)[None, :]
            x = tl.load(tile, mask=inside[:, None] & present[None, :], other=0.0)
            if NORM:
                x = normalise(x, mean, rstd, norm_weight_ptr, norm_bias_ptr, term, present)
                x = x.to(weight_ptr.dtype.element_ty)
            weight = tl.load(weight_row + term[:, None], mask=present[:, None] & wanted[None, :], other=0.0)
            total = product(x, weight, total, PRECISION)
    if BIAS:
        total += tl.load(bias_ptr + n, mask=wanted, other=0.0).to(tl.float32)[None, :]
    if GELU:
        total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    mask = inside[:, None] & wanted[None, :]
    if RESIDUAL >= 0:
        row = row_start(residual_index_ptr, m, inside, tokens_out, tokens_out, 0, columns, RESIDUAL)
        total += tl.load(residual_ptr + row[:, None] + n[None, :], mask=mask, other=0.0).to(tl.float32)
    out = out_ptr + m.to(tl.int64)[:, None] * columns + n[None, :]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=mask)
