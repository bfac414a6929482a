"""The phases of a Jacobi iteration, tile by tile: what both drivers of the method call.

A phase computes a square tile (i, j) of matrix b. Matrices are n x n, one after the other, and n is masked.
`done[b]` is 1 once matrix b has converged: from then on its tiles are skipped, or copied where the next phase
reads the other buffer. Import only where Triton is installed.

In TF32 operands are rounded here, to nearest. Compiled `tl.dot` leaves that to the tensor cores, which cut
the low bits off: errors twice as large and of one sign, after which one draw was seen that the tail did not
restore.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl


@triton.jit
def load(base, rows, columns, n):
    """Entries of a matrix, 0 outside."""
    return tl.load(base + rows * n + columns, mask=(rows < n) & (columns < n), other=0.0)


@triton.jit
def store(base, rows, columns, n, value):
    """Write entries of a matrix, those inside."""
    tl.store(base + rows * n + columns, value, mask=(rows < n) & (columns < n))


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """`x` rounded to TF32, ties away from zero as in `cvt.rna.tf32`, if the product is in TF32."""
    if PRECISION == "tf32":
        bits = x.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, x)  # the sum could carry a NaN over to zero
    return x


@triton.jit
def dot(left, right, total, PRECISION: tl.constexpr):
    """`total + left right`."""
    return tl.dot(rounded(left, PRECISION), rounded(right, PRECISION), total, input_precision=PRECISION)


@triton.jit
def tile_sum(partial_ptr, b, count, COUNT: tl.constexpr):
    """The sum of matrix b's parts, in an order that does not depend on the batch."""
    index = tl.arange(0, COUNT)
    return tl.sum(tl.load(partial_ptr + b * count + index, mask=index < count, other=0.0))


@triton.jit
def angles_tile(
    b_ptr, k_ptr, norm_ptr, done_ptr, i, j, b, tiles, n, threshold,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """K from B. A tile above the diagonal writes its mirror image too, which makes K skew to the last bit.

    `norm[b, tile]` receives the tile's part of `||K||_F^2`.
    """
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
                left = load(matrix, k[None, :], rows[:, None], n)
                right = load(matrix, k[:, None], columns[None, :], n)
                products = dot(left, right, products, PRECISION)
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
            # Not "greater than": NaN is to be rotated, so that it stays seen.
            rotated = ~(tl.abs(products) <= limit) & (rows[:, None] < columns[None, :])
            upper = tl.where(rotated, signed, 0.0)
            part = 2.0 * tl.sum(upper * upper)
            out = k_ptr + b * n * n
            if i == j:
                store(out, rows[:, None], columns[None, :], n, upper - tl.trans(upper))
            else:
                store(out, rows[:, None], columns[None, :], n, upper)
                store(out, columns[:, None], rows[None, :], n, -tl.trans(upper))
        tl.store(norm_ptr + (b * tiles + i) * tiles + j, part)


@triton.jit
def square_tile(
    k_ptr, q_ptr, k_norm_ptr, q_norm_ptr, done_ptr, next_done_ptr, i, j, b, tiles, n, limit,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """`Q = K K`, the parts of `||Q||_F^2`, and the test `||K||_F^2 <= limit` that ends the iterations.

    A matrix whose angles are NaN ends too: nothing will help it, and others would wait for it.
    """
    done = tl.load(done_ptr + b)
    if i + j == 0:
        norm = tile_sum(k_norm_ptr, b, tiles * tiles, COUNT)
        tl.store(next_done_ptr + b, tl.where((norm <= limit) | (norm != norm), 1, done))
    if done == 0:
        matrix = k_ptr + b * n * n
        rows = i * BLOCK + tl.arange(0, BLOCK)
        columns = j * BLOCK + tl.arange(0, BLOCK)
        product = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for start in range(0, n, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            left = load(matrix, rows[:, None], k[None, :], n)
            right = load(matrix, k[:, None], columns[None, :], n)
            product = dot(left, right, product, PRECISION)
        store(q_ptr + b * n * n, rows[:, None], columns[None, :], n, product)
        tl.store(q_norm_ptr + (b * tiles + i) * tiles + j, tl.sum(product * product))


@triton.jit
def polynomial_tile(
    k_ptr, q_ptr, p_ptr, q_norm_ptr, done_ptr, i, j, b, tiles, n, step, alpha,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """`P = t K + t^2 Q / 2 + (alpha t^3 K + alpha^2 t^4 Q) Q` with `t = min(1, step / ||Q||_F^(1/2))`."""
    if tl.load(done_ptr + b) == 0:
        bound = tl.sqrt(tl.sqrt(tile_sum(q_norm_ptr, b, tiles * tiles, COUNT)))
        t = tl.minimum(step / tl.maximum(bound, 1e-30), 1.0)
        first, second = k_ptr + b * n * n, q_ptr + b * n * n
        rows = i * BLOCK + tl.arange(0, BLOCK)
        columns = j * BLOCK + tl.arange(0, BLOCK)
        product = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for start in range(0, n, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            left = load(first, rows[:, None], k[None, :], n)
            left += alpha * t * load(second, rows[:, None], k[None, :], n)
            right = load(second, k[:, None], columns[None, :], n)
            product = dot(left, right, product, PRECISION)
        p = t * load(first, rows[:, None], columns[None, :], n)
        p += 0.5 * t * t * load(second, rows[:, None], columns[None, :], n)
        p += alpha * t * t * t * product
        store(p_ptr + b * n * n, rows[:, None], columns[None, :], n, p)


@triton.jit
def multiply_tile(
    left_ptr, right_ptr, old_ptr, out_ptr, done_ptr, i, j, m, n, batch,
    ADD: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`out = left right`, with ADD plus `old`; `out = old` where done.

    There may be several times `batch` left matrices: matrix m meets `right[m % batch]` and `done[m % batch]`.
    """
    b = m % batch
    rows = i * BLOCK + tl.arange(0, BLOCK)
    columns = j * BLOCK + tl.arange(0, BLOCK)
    out = out_ptr + m * n * n
    old = old_ptr + m * n * n
    if tl.load(done_ptr + b) != 0:
        store(out, rows[:, None], columns[None, :], n, load(old, rows[:, None], columns[None, :], n))
    else:
        product = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for start in range(0, n, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            left = load(left_ptr + m * n * n, rows[:, None], k[None, :], n)
            right = load(right_ptr + b * n * n, k[:, None], columns[None, :], n)
            product = dot(left, right, product, PRECISION)
        if ADD:
            product += load(old, rows[:, None], columns[None, :], n)
        store(out, rows[:, None], columns[None, :], n, product)


@triton.jit
def defect_tile(
    v_ptr, e_ptr, done_ptr, i, j, b, n,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`E = (I - V^T V) / 2`, so that `V + V E` is a Newton-Schulz step."""
    if tl.load(done_ptr + b) == 0:
        matrix = v_ptr + b * n * n
        rows = i * BLOCK + tl.arange(0, BLOCK)
        columns = j * BLOCK + tl.arange(0, BLOCK)
        product = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
        for start in range(0, n, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            left = load(matrix, k[None, :], rows[:, None], n)
            right = load(matrix, k[:, None], columns[None, :], n)
            product = dot(left, right, product, PRECISION)
        unit = tl.where(rows[:, None] == columns[None, :], 1.0, 0.0)
        store(e_ptr + b * n * n, rows[:, None], columns[None, :], n, 0.5 * (unit - product))
