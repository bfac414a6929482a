"""The Triton kernel of window attention. Import only where Triton is installed.

A program owns a head of a window: it normalises the window's rows, multiplies them with the head's share of
the weights, and attends, all in registers. Queries, keys, values and scores never exist in memory; and a
single image has windows times heads programs in every stage, where windows alone are 64, 16, 4 and 1.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl

from npnet_kernels.rows.kernels import normalise, product, row_start, row_statistics


@triton.jit(do_not_specialize=["tokens", "windows", "window_tokens", "bias_windows"])
def window_attention_kernel(
    x_ptr, index_ptr, norm_weight_ptr, norm_bias_ptr, weight_ptr, bias_ptr, score_bias_ptr, out_ptr,
    tokens, width, windows, window_tokens, head_width, bias_windows,
    SCALE: tl.constexpr, EPS: tl.constexpr, PRECISION: tl.constexpr,
    TOKENS: tl.constexpr, HEAD: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """`softmax(scale q k^T + bias) v` of the normalised rows of one window, for one head.

    Grid (windows * B, heads). Rows are read where `index` says and written in order.
    """
    window = tl.program_id(0) % windows
    b = tl.program_id(0) // windows
    head = tl.program_id(1)
    row = tl.arange(0, TOKENS)
    inside = row < window_tokens
    m = b * tokens + window * window_tokens + row
    mean, rstd = row_statistics(x_ptr, index_ptr, m, inside, tokens, tokens, width, EPS, 1, TOKENS, BLOCK_S)
    start = row_start(index_ptr, m, inside, tokens, tokens, 0, width, 1)

    d = tl.arange(0, HEAD)
    own = d < head_width
    column = head * head_width + d
    k = tl.arange(0, BLOCK_K)
    query = tl.zeros((TOKENS, HEAD), dtype=tl.float32)
    key = tl.zeros((TOKENS, HEAD), dtype=tl.float32)
    value = tl.zeros((TOKENS, HEAD), dtype=tl.float32)
    for first in range(0, width, BLOCK_K):
        term = first + k
        present = term < width
        x = tl.load(
            x_ptr + start[:, None] + term[None, :], mask=inside[:, None] & present[None, :], other=0.0
        )
        x = normalise(x, mean, rstd, norm_weight_ptr, norm_bias_ptr, term, present)
        x = x.to(weight_ptr.dtype.element_ty)
        # The weights are (3 * width, width): all of the queries, all of the keys, all of the values.
        tile = weight_ptr + column[None, :] * width + term[:, None]
        mask = present[:, None] & own[None, :]
        area = width * width
        query = product(x, tl.load(tile, mask=mask, other=0.0), query, PRECISION)
        key = product(x, tl.load(tile + area, mask=mask, other=0.0), key, PRECISION)
        value = product(x, tl.load(tile + 2 * area, mask=mask, other=0.0), value, PRECISION)
    query += tl.load(bias_ptr + column, mask=own, other=0.0).to(tl.float32)[None, :]
    key += tl.load(bias_ptr + width + column, mask=own, other=0.0).to(tl.float32)[None, :]
    value += tl.load(bias_ptr + 2 * width + column, mask=own, other=0.0).to(tl.float32)[None, :]

    half = out_ptr.dtype.element_ty
    zero = tl.zeros((TOKENS, TOKENS), dtype=tl.float32)
    score = product((query * SCALE).to(half), tl.trans(key.to(half)), zero, PRECISION)
    other = row
    pair = row[:, None] * window_tokens + other[None, :]
    plane = (window % bias_windows * tl.num_programs(1) + head) * window_tokens * window_tokens
    seen = inside[:, None] & (other < window_tokens)[None, :]
    score += tl.load(score_bias_ptr + plane + pair, mask=seen, other=0.0)
    score = tl.where((other < window_tokens)[None, :], score, float("-inf"))
    weight = tl.exp(score - tl.max(score, axis=1)[:, None])
    weight = weight / tl.sum(weight, axis=1)[:, None]
    attended = product(weight.to(half), value.to(half), tl.zeros((TOKENS, HEAD), dtype=tl.float32), PRECISION)
    out = out_ptr + m.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(out, attended.to(half), mask=inside[:, None] & own[None, :])
