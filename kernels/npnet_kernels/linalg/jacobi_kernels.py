"""The kernels of the simultaneous Jacobi method: one phase a launch. Import only where Triton is installed.

Grid (tiles, tiles, matrices). `done` is read and written in different launches only, so no launch waits for
another program, and nothing waits for the host. Its rows begin anywhere, and a kernel is not compiled again
for each alignment. `persistent_kernel.py` runs the same phases in one launch.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl

from npnet_kernels.linalg.jacobi_phases import (
    angles_tile,
    defect_tile,
    multiply_tile,
    polynomial_tile,
    square_tile,
    store,
)


@triton.jit
def start_kernel(
    matrix_ptr, single_ptr, work_ptr, done_ptr, counters_ptr, n, COUNTERS: tl.constexpr, BLOCK: tl.constexpr
):
    """`single` = the matrix in float32; `work` = (it, I); nothing done, nobody arrived."""
    b = tl.program_id(2).to(tl.int64)
    i = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[:, None]
    j = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    matrices = tl.num_programs(2).to(tl.int64)
    inside = (i < n) & (j < n)
    x = tl.load(matrix_ptr + b * n * n + i * n + j, mask=inside, other=0.0).to(tl.float32)
    store(single_ptr + b * n * n, i, j, n, x)
    store(work_ptr + b * n * n, i, j, n, x)
    store(work_ptr + (matrices + b) * n * n, i, j, n, tl.where(i == j, 1.0, 0.0))
    if tl.program_id(0) + tl.program_id(1) == 0:
        tl.store(done_ptr + b, 0)
        if b == 0:
            counter = tl.arange(0, COUNTERS)
            tl.store(counters_ptr + counter, counter * 0)


@triton.jit(do_not_specialize_on_alignment=["done_ptr"])
def angles_kernel(
    b_ptr, k_ptr, norm_ptr, done_ptr, n, threshold,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """See `angles_tile`."""
    i, j, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    angles_tile(
        b_ptr, k_ptr, norm_ptr, done_ptr, i, j, b, tl.num_programs(0), n, threshold,
        PRECISION, BLOCK, BLOCK_K,
    )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["done_ptr", "next_done_ptr"])
def square_kernel(
    k_ptr, q_ptr, k_norm_ptr, q_norm_ptr, done_ptr, next_done_ptr, n, limit,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """See `square_tile`."""
    i, j, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    square_tile(
        k_ptr, q_ptr, k_norm_ptr, q_norm_ptr, done_ptr, next_done_ptr, i, j, b, tl.num_programs(0), n, limit,
        PRECISION, BLOCK, BLOCK_K, COUNT,
    )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["done_ptr"])
def polynomial_kernel(
    k_ptr, q_ptr, p_ptr, q_norm_ptr, done_ptr, n, step, alpha,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """See `polynomial_tile`."""
    i, j, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    polynomial_tile(
        k_ptr, q_ptr, p_ptr, q_norm_ptr, done_ptr, i, j, b, tl.num_programs(0), n, step, alpha,
        PRECISION, BLOCK, BLOCK_K, COUNT,
    )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["done_ptr"])
def multiply_kernel(
    left_ptr, right_ptr, old_ptr, out_ptr, done_ptr, n, batch,
    ADD: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """See `multiply_tile`."""
    i, j, m = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    multiply_tile(
        left_ptr, right_ptr, old_ptr, out_ptr, done_ptr, i, j, m, n, batch, ADD, PRECISION, BLOCK, BLOCK_K
    )


@triton.jit(do_not_specialize_on_alignment=["done_ptr"])
def defect_kernel(
    v_ptr, e_ptr, done_ptr, n, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr
):
    """See `defect_tile`."""
    i, j, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    defect_tile(v_ptr, e_ptr, done_ptr, i, j, b, n, PRECISION, BLOCK, BLOCK_K)
