"""Triton kernels of the tail's entrywise steps. Import only where Triton is installed.

Square tiles of float64 n x n matrices stored one after the other, grid (tiles, tiles, matrices), n masked.
The mathematics and its reasons are in `rotations.py`, whose names these kernels use.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl


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
def weighted_defect_kernel(gram_ptr, s_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """`out = (I - U^T U) * w`."""
    b = tl.program_id(2).to(tl.int64)
    i = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    j = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (i < n) & (j < n)
    s_i = tl.load(s_ptr + b * n + i, mask=i < n, other=0.0)
    s_j = tl.load(s_ptr + b * n + j, mask=j < n, other=0.0)
    total = s_i * s_i + s_j * s_j
    gram = tl.load(gram_ptr + b * n * n + i * n + j, mask=inside, other=0.0)
    defect = tl.where(i == j, 1.0, 0.0) - gram
    weighted = defect * (s_i * s_i) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + b * n * n + i * n + j, weighted, mask=inside)


@triton.jit
def rotations_kernel(
    t_ptr, gram_u_ptr, gram_v_ptr, f_ptr, g_ptr, s_ptr, settled_ptr, n, cluster, largest_angle,
    BLOCK: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """`f`, `g` and `s`; `settled[b, tile]` is 0 where a pair of distinct values was out of reach."""
    b = tl.program_id(2).to(tl.int64)
    t, gram_u, gram_v = t_ptr + b * n * n, gram_u_ptr + b * n * n, gram_v_ptr + b * n * n
    i = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    j = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (i < n) & (j < n)
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
    tl.store(f_ptr + b * n * n + i * n + j, f, mask=inside)
    tl.store(g_ptr + b * n * n + i * n + j, g, mask=inside)
    if tl.program_id(0) == 0:
        tl.store(s_ptr + b * n + j, s_j, mask=j < n)
    tiles = tl.num_programs(0)
    tile = (b * tiles + tl.program_id(0)) * tiles + tl.program_id(1)
    tl.store(settled_ptr + tile, 1 - tl.max((distinct != apart).to(tl.int32)))


@triton.jit
def worst_entry_kernel(gram_u_ptr, gram_v_ptr, mv_ptr, u_ptr, s_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """`out[b, tile]`: the largest of the three residuals in the tile, infinity for NaN."""
    b = tl.program_id(2).to(tl.int64)
    i = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    j = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (i < n) & (j < n)
    offset = b * n * n + i * n + j
    unit = tl.where(inside & (i == j), 1.0, 0.0)
    s_j = tl.load(s_ptr + b * n + j, mask=j < n, other=0.0)
    scale = tl.maximum(tl.load(s_ptr + b * n), 1e-300)
    left = tl.abs(unit - tl.load(gram_u_ptr + offset, mask=inside, other=0.0))
    right = tl.abs(unit - tl.load(gram_v_ptr + offset, mask=inside, other=0.0))
    difference = tl.load(mv_ptr + offset, mask=inside, other=0.0)
    difference -= tl.load(u_ptr + offset, mask=inside, other=0.0) * s_j
    total = left + right + tl.abs(difference) / scale
    # A maximum may drop NaN; a sum does not, and the comparison turns it into infinity.
    worst = tl.maximum(tl.maximum(left, right), tl.abs(difference) / scale)
    worst = tl.where(total == total, worst, float("inf"))
    tiles = tl.num_programs(0)
    tl.store(out_ptr + (b * tiles + tl.program_id(0)) * tiles + tl.program_id(1), tl.max(worst))
