"""Triton kernels of the tail's entrywise steps. Import only where Triton is installed.

Square tiles of float64 n x n matrices stored one after the other, grid (tiles, tiles, matrices), n masked.
The mathematics and its reasons are in `tail.py`, whose names these kernels use.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl


@triton.jit
def _tile(n, BLOCK: tl.constexpr):
    """The matrix, rows and columns of this program's tile, and what of it is inside."""
    b = tl.program_id(2).to(tl.int64)
    i = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    j = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    return b, i, j, (i < n) & (j < n)


@triton.jit
def _rank(values_ptr, j, n, BLOCK: tl.constexpr):
    """How many of n magnitudes stand before the one at `j` (1, BLOCK) in a stable descending sort.

    They are compared as the integers that their bits spell, by which NaN stands before infinity, as in
    `torch.sort`, and the ranks are a permutation whatever the values.
    """
    one = tl.abs(tl.load(values_ptr + j, mask=j < n, other=0.0)).to(tl.int64, bitcast=True)
    rank = tl.zeros((1, BLOCK), dtype=tl.int32)
    for start in range(0, n, BLOCK):
        k = (start + tl.arange(0, BLOCK))[:, None]
        other = tl.abs(tl.load(values_ptr + k, mask=k < n, other=0.0)).to(tl.int64, bitcast=True)
        before = (k < n) & ((other > one) | ((other == one) & (k < j)))
        rank += tl.sum(before.to(tl.int32), axis=0)[None, :]
    return rank


@triton.jit
def norms_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """`out[b, j]`: the 2-norm of a column. Grid (tiles, matrices)."""
    b = tl.program_id(1).to(tl.int64)
    j = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[None, :]
    squares = tl.zeros((BLOCK, BLOCK), dtype=tl.float64)
    for start in range(0, n, BLOCK):
        i = (start + tl.arange(0, BLOCK))[:, None]
        x = tl.load(x_ptr + b * n * n + i * n + j, mask=(i < n) & (j < n), other=0.0)
        squares += x * x
    norms = tl.sqrt(tl.sum(squares, axis=0))[None, :]
    tl.store(out_ptr + b * n + j, norms, mask=j < n)


@triton.jit
def left_vectors_kernel(mv_ptr, v_ptr, norms_ptr, x_ptr, s_ptr, n, BLOCK: tl.constexpr):
    """`x = (U, V, M V)` and `s`, columns sorted by norm."""
    b, i, j, inside = _tile(n, BLOCK)
    norm = tl.load(norms_ptr + b * n + j, mask=j < n, other=0.0)
    rank = _rank(norms_ptr + b * n, j, n, BLOCK)
    mv = tl.load(mv_ptr + b * n * n + i * n + j, mask=inside, other=0.0)
    v = tl.load(v_ptr + b * n * n + i * n + j, mask=inside, other=0.0)
    all_of_one = tl.num_programs(2).to(tl.int64) * n * n
    out = x_ptr + b * n * n + i * n + rank
    tl.store(out, mv / tl.where(norm == 0.0, 1.0, norm), mask=inside)
    tl.store(out + all_of_one, v, mask=inside)
    tl.store(out + 2 * all_of_one, mv, mask=inside)
    if tl.program_id(0) == 0:
        tl.store(s_ptr + b * n + rank, norm, mask=j < n)


@triton.jit
def weighted_change_kernel(gram_ptr, s_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """`out = I + (I - U^T U) * w`."""
    b, i, j, inside = _tile(n, BLOCK)
    s_i = tl.load(s_ptr + b * n + i, mask=i < n, other=0.0)
    s_j = tl.load(s_ptr + b * n + j, mask=j < n, other=0.0)
    total = s_i * s_i + s_j * s_j
    gram = tl.load(gram_ptr + b * n * n + i * n + j, mask=inside, other=0.0)
    unit = tl.where(i == j, 1.0, 0.0)
    weighted = (unit - gram) * (s_i * s_i) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + b * n * n + i * n + j, unit + weighted, mask=inside)


@triton.jit
def _refined_values(t, gram_u, gram_v, index, n):
    """`s` at `index`, from the diagonals; 0 outside."""
    offset = index * n + index
    inside = index < n
    lost = (
        2.0
        - tl.load(gram_u + offset, mask=inside, other=1.0)
        - tl.load(gram_v + offset, mask=inside, other=1.0)
    )
    return tl.load(t + offset, mask=inside, other=0.0) / (1.0 - 0.5 * lost)


@triton.jit
def rotations_kernel(
    t_ptr, grams_ptr, change_ptr, s_ptr, settled_ptr, n, cluster, largest_angle,
    BLOCK: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """`change`, `s`; `settled[b, tile]` is 0 where a pair of distinct values was out of reach."""
    b, i, j, inside = _tile(n, BLOCK)
    all_of_one = tl.num_programs(2).to(tl.int64) * n * n
    t, gram_u = t_ptr + b * n * n, grams_ptr + b * n * n
    gram_v = gram_u + all_of_one
    s_i, s_j = _refined_values(t, gram_u, gram_v, i, n), _refined_values(t, gram_u, gram_v, j, n)
    largest = tl.max(_refined_values(t, gram_u, gram_v, tl.arange(0, SIDE), n))
    unit = tl.where(i == j, 1.0, 0.0)
    defect_u = unit - tl.load(gram_u + i * n + j, mask=inside, other=0.0)
    defect_v = unit - tl.load(gram_v + i * n + j, mask=inside, other=0.0)
    alpha = tl.load(t + i * n + j, mask=inside, other=0.0) + s_j * defect_u
    beta = tl.load(t + j * n + i, mask=inside, other=0.0) + s_j * defect_v
    gap = s_j - s_i
    distinct = inside & (tl.abs(gap) > cluster * largest)
    apart = distinct & (tl.abs(alpha) + tl.abs(beta) <= 2.0 * largest_angle * tl.abs(gap))
    difference = tl.where(apart, gap * (s_j + s_i), 1.0)
    f = tl.where(apart, (alpha * s_j + beta * s_i) / difference, 0.5 * defect_u)
    g = tl.where(apart, (alpha * s_i + beta * s_j) / difference, 0.5 * defect_v)
    out = change_ptr + b * n * n + i * n + j
    tl.store(out, unit + f, mask=inside)
    tl.store(out + all_of_one, unit + g, mask=inside)
    tl.store(out + 2 * all_of_one, unit + g, mask=inside)
    if tl.program_id(0) == 0:
        tl.store(s_ptr + b * n + j, s_j, mask=j < n)
    tiles = tl.num_programs(0)
    tile = (b * tiles + tl.program_id(0)) * tiles + tl.program_id(1)
    tl.store(settled_ptr + tile, 1 - tl.max((distinct != apart).to(tl.int32)))


@triton.jit
def worst_entry_kernel(grams_ptr, x_ptr, s_ptr, out_ptr, n, BLOCK: tl.constexpr, SIDE: tl.constexpr):
    """`out[b, tile]`: the largest of the three residuals in the tile, infinity for NaN."""
    b, i, j, inside = _tile(n, BLOCK)
    all_of_one = tl.num_programs(2).to(tl.int64) * n * n
    offset = b * n * n + i * n + j
    unit = tl.where(inside & (i == j), 1.0, 0.0)
    s_j = tl.load(s_ptr + b * n + j, mask=j < n, other=0.0)
    every = tl.arange(0, SIDE)
    largest = tl.max(tl.abs(tl.load(s_ptr + b * n + every, mask=every < n, other=0.0)))
    inverse = 1.0 / tl.maximum(largest, 1e-300)
    left = tl.abs(unit - tl.load(grams_ptr + offset, mask=inside, other=0.0))
    right = tl.abs(unit - tl.load(grams_ptr + all_of_one + offset, mask=inside, other=0.0))
    difference = tl.load(x_ptr + 2 * all_of_one + offset, mask=inside, other=0.0)
    difference -= tl.load(x_ptr + offset, mask=inside, other=0.0) * s_j
    difference = tl.abs(difference) * inverse
    total = left + right + difference
    # A maximum may drop NaN; a sum does not, and the comparison turns it into infinity.
    worst = tl.maximum(tl.maximum(left, right), difference)
    worst = tl.where(total == total, worst, float("inf"))
    tiles = tl.num_programs(0)
    tl.store(out_ptr + (b * tiles + tl.program_id(0)) * tiles + tl.program_id(1), tl.max(worst))


@triton.jit
def finish_kernel(
    x_ptr, s_ptr, worst_ptr, settled_ptr, scale_ptr, u_ptr, value_ptr, vh_ptr, residual_ptr, n, tiles, poison,
    POISON: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """float32 factors with positive, sorted values; NaN where POISON and the residual exceeds `poison`."""
    b, i, j, inside = _tile(n, BLOCK)
    all_of_one = tl.num_programs(2).to(tl.int64) * n * n
    every = tl.arange(0, TILES)
    residual = tl.max(tl.load(worst_ptr + b * tiles + every, mask=every < tiles, other=0.0))
    settled = tl.min(tl.load(settled_ptr + b * tiles + every, mask=every < tiles, other=1))
    residual = tl.where(settled == 1, residual, float("inf"))
    s = tl.load(s_ptr + b * n + j, mask=j < n, other=0.0)
    rank = _rank(s_ptr + b * n, j, n, BLOCK)
    u = tl.load(x_ptr + b * n * n + i * n + j, mask=inside, other=0.0)
    v = tl.load(x_ptr + all_of_one + b * n * n + i * n + j, mask=inside, other=0.0)
    u = tl.where(s < 0.0, -u, u)
    value = tl.abs(s) * tl.load(scale_ptr + b)
    if POISON:
        bad = residual > poison  # never NaN: `worst_entry_kernel` turns NaN into infinity
        u, v = tl.where(bad, float("nan"), u), tl.where(bad, float("nan"), v)
        value = tl.where(bad, float("nan"), value)
    tl.store(u_ptr + b * n * n + i * n + rank, u.to(tl.float32), mask=inside)
    tl.store(vh_ptr + b * n * n + rank * n + i, v.to(tl.float32), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(value_ptr + b * n + rank, value.to(tl.float32), mask=j < n)
        if tl.program_id(1) == 0:
            tl.store(residual_ptr + b, residual)
