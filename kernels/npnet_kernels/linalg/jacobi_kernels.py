"""Triton kernels of the simultaneous Jacobi method. Import only where Triton is installed.

Every kernel computes square tiles of n x n matrices stored one after the other, on the grid (tiles, tiles,
matrices), and masks n. `done[b]` is 1 once matrix b has converged: from then on its tiles are skipped, or
copied where the next launch reads the other buffer. It is read and written in different launches only, so
no launch waits for another program, and nothing waits for the host.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl


@triton.jit
def _load(base, rows, columns, n):
    return tl.load(base + rows * n + columns, mask=(rows < n) & (columns < n), other=0.0)


@triton.jit
def _store(base, rows, columns, n, value):
    tl.store(base + rows * n + columns, value, mask=(rows < n) & (columns < n))


@triton.jit
def _tile_sum(partial_ptr, b, tiles, TILES: tl.constexpr):
    index = tl.arange(0, TILES)
    return tl.sum(tl.load(partial_ptr + b * tiles + index, mask=index < tiles, other=0.0))


@triton.jit
def angles_kernel(
    b_ptr, k_ptr, norm_ptr, done_ptr, n, threshold,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """K from B. A tile above the diagonal writes its mirror image too, which makes K skew to the last bit.

    `norm[b, tile]` receives the tile's part of `||K||_F^2`.
    """
    i, j, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if tl.load(done_ptr + b) == 0:
        part = 0.0
        if i <= j:
            matrix = b_ptr + b * n * n
            rows = i * BLOCK + tl.arange(0, BLOCK)
            columns = j * BLOCK + tl.arange(0, BLOCK)
            products = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
            squares_i = tl.zeros((BLOCK,), dtype=tl.float32)
            squares_j = tl.zeros((BLOCK,), dtype=tl.float32)
            for start in range(0, n, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                left = _load(matrix, k[None, :], rows[:, None], n)
                right = _load(matrix, k[:, None], columns[None, :], n)
                products = tl.dot(left, right, products, input_precision=PRECISION)
                squares_i += tl.sum(left * left, axis=1)
                squares_j += tl.sum(right * right, axis=0)
            gap = squares_j[None, :] - squares_i[:, None]
            twice = 2.0 * tl.abs(products)
            reach = tl.abs(gap) + tl.sqrt(gap * gap + twice * twice)
            tangent = twice / tl.where(reach == 0.0, 1.0, reach)
            square = tangent * tangent
            angle = tangent * (15.0 + 4.0 * square) / (15.0 + 9.0 * square)
            signed = tl.where((products > 0) == (gap >= 0), angle, -angle)
            limit = threshold * tl.sqrt(squares_i)[:, None] * tl.sqrt(squares_j)[None, :]
            rotated = (tl.abs(products) > limit) & (rows[:, None] < columns[None, :])
            upper = tl.where(rotated, signed, 0.0)
            part = 2.0 * tl.sum(upper * upper)
            out = k_ptr + b * n * n
            if i == j:
                _store(out, rows[:, None], columns[None, :], n, upper - tl.trans(upper))
            else:
                _store(out, rows[:, None], columns[None, :], n, upper)
                _store(out, columns[:, None], rows[None, :], n, -tl.trans(upper))
        tiles = tl.num_programs(0)
        tl.store(norm_ptr + (b * tiles + i) * tiles + j, part)


@triton.jit
def square_kernel(
    k_ptr, q_ptr, k_norm_ptr, q_norm_ptr, done_ptr, next_done_ptr, n, limit, tiles,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """`Q = K K`, the parts of `||Q||_F^2`, and the test `||K||_F^2 <= limit` that ends the iterations."""
    i, j, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    done = tl.load(done_ptr + b)
    if i + j == 0:
        converged = _tile_sum(k_norm_ptr, b, tiles, TILES) <= limit
        tl.store(next_done_ptr + b, tl.where(converged, 1, done))
    if done == 0:
        matrix = k_ptr + b * n * n
        rows = i * BLOCK + tl.arange(0, BLOCK)
        columns = j * BLOCK + tl.arange(0, BLOCK)
        product = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for start in range(0, n, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            left = _load(matrix, rows[:, None], k[None, :], n)
            right = _load(matrix, k[:, None], columns[None, :], n)
            product = tl.dot(left, right, product, input_precision=PRECISION)
        _store(q_ptr + b * n * n, rows[:, None], columns[None, :], n, product)
        across = tl.num_programs(0)
        tl.store(q_norm_ptr + (b * across + i) * across + j, tl.sum(product * product))


@triton.jit
def polynomial_kernel(
    k_ptr, q_ptr, p_ptr, q_norm_ptr, done_ptr, n, step, alpha, tiles,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """`P = t K + t^2 Q / 2 + (alpha t^3 K + alpha^2 t^4 Q) Q` with `t = min(1, step / ||Q||_F^(1/2))`."""
    i, j, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if tl.load(done_ptr + b) == 0:
        bound = tl.sqrt(tl.sqrt(_tile_sum(q_norm_ptr, b, tiles, TILES)))
        t = tl.minimum(step / tl.maximum(bound, 1e-30), 1.0)
        first, second = k_ptr + b * n * n, q_ptr + b * n * n
        rows = i * BLOCK + tl.arange(0, BLOCK)
        columns = j * BLOCK + tl.arange(0, BLOCK)
        product = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for start in range(0, n, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            left = _load(first, rows[:, None], k[None, :], n)
            left += alpha * t * _load(second, rows[:, None], k[None, :], n)
            right = _load(second, k[:, None], columns[None, :], n)
            product = tl.dot(left, right, product, input_precision=PRECISION)
        p = t * _load(first, rows[:, None], columns[None, :], n)
        p += 0.5 * t * t * _load(second, rows[:, None], columns[None, :], n)
        p += alpha * t * t * t * product
        _store(p_ptr + b * n * n, rows[:, None], columns[None, :], n, p)


@triton.jit
def multiply_kernel(
    left_ptr, right_ptr, old_ptr, out_ptr, done_ptr, n, batch,
    ADD: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`out = left right`, with ADD plus `old`; `out = old` where done.

    There may be several times `batch` left matrices: matrix m meets `right[m % batch]` and `done[m % batch]`.
    """
    i, j, m = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    b = m % batch
    rows = i * BLOCK + tl.arange(0, BLOCK)
    columns = j * BLOCK + tl.arange(0, BLOCK)
    out = out_ptr + m * n * n
    old = old_ptr + m * n * n
    if tl.load(done_ptr + b) != 0:
        _store(out, rows[:, None], columns[None, :], n, _load(old, rows[:, None], columns[None, :], n))
    else:
        product = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for start in range(0, n, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            left = _load(left_ptr + m * n * n, rows[:, None], k[None, :], n)
            right = _load(right_ptr + b * n * n, k[:, None], columns[None, :], n)
            product = tl.dot(left, right, product, input_precision=PRECISION)
        if ADD:
            product += _load(old, rows[:, None], columns[None, :], n)
        _store(out, rows[:, None], columns[None, :], n, product)


@triton.jit
def defect_kernel(
    v_ptr, e_ptr, done_ptr, n, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr
):
    """`E = (I - V^T V) / 2`, so that `V + V E` is a Newton-Schulz step."""
    i, j, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if tl.load(done_ptr + b) == 0:
        matrix = v_ptr + b * n * n
        rows = i * BLOCK + tl.arange(0, BLOCK)
        columns = j * BLOCK + tl.arange(0, BLOCK)
        product = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for start in range(0, n, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            left = _load(matrix, k[None, :], rows[:, None], n)
            right = _load(matrix, k[:, None], columns[None, :], n)
            product = tl.dot(left, right, product, input_precision=PRECISION)
        unit = tl.where(rows[:, None] == columns[None, :], 1.0, 0.0)
        _store(e_ptr + b * n * n, rows[:, None], columns[None, :], n, 0.5 * (unit - product))
