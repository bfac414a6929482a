"""The Triton kernel of the residual map. Import only where Triton is installed.

A program owns one column of the map of features, whose side is few tokens, and a tile of the selected
features: only these are normalised and multiplied, a sixth of all at the published size.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl

from npnet_kernels.rows.kernels import normalise, row_start, row_statistics


@triton.jit(do_not_specialize=["tokens", "side", "channels"])
def residual_kernel(
    x_ptr, index_ptr, norm_weight_ptr, norm_bias_ptr, column_ptr, weight_ptr, bias_ptr, out_ptr,
    tokens, width, side, channels, columns,
    EPS: tl.constexpr, SIDE: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """`out[b, c, j, x] = bias[c] + sum_i weight[c, i] norm(F[b, i, j])[column[x]]`.

    Grid (side, tiles of x, B).
    """
    j = tl.program_id(0)
    x = tl.program_id(1) * BLOCK_X + tl.arange(0, BLOCK_X)
    b = tl.program_id(2)
    i = tl.arange(0, SIDE)
    inside, wanted = i < side, x < columns
    m = b * tokens + i * side + j
    mean, rstd = row_statistics(x_ptr, index_ptr, m, inside, tokens, tokens, width, EPS, 1, SIDE, BLOCK_S)
    start = row_start(index_ptr, m, inside, tokens, tokens, 0, width, 1)
    column = tl.load(column_ptr + x, mask=wanted, other=0)
    tile = x_ptr + start[:, None] + column[None, :]
    feature = tl.load(tile, mask=inside[:, None] & wanted[None, :], other=0.0)
    feature = normalise(feature, mean, rstd, norm_weight_ptr, norm_bias_ptr, column, wanted)
    for channel in range(channels):
        weight = tl.load(weight_ptr + channel * side + i, mask=inside, other=0.0).to(tl.float32)
        row = tl.sum(tl.where(inside[:, None], feature, 0.0) * weight[:, None], axis=0)
        row += tl.load(bias_ptr + channel).to(tl.float32)
        place = ((b.to(tl.int64) * channels + channel) * side + j) * columns + x
        tl.store(out_ptr + place, row, mask=wanted)
