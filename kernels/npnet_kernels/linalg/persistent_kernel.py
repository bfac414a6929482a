"""All iterations of the Jacobi method in one launch, with a barrier across the grid between phases.

Every program must be resident at once, or those that wait keep out those that are waited for: the launch is
cooperative, which CUDA refuses rather than lets hang. A test explores the protocol. Import only where Triton
is installed.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl

from npnet_kernels.linalg.jacobi_phases import (
    angles_tile,
    defect_tile,
    load,
    multiply_tile,
    polynomial_tile,
    square_tile,
)


@triton.jit
def barrier(counter_ptr, expected):
    """Wait until `expected` arrivals; what any program stored before is visible after.

    The counter only grows during a launch, and a launch before this one set it to zero, so neither a slow
    program nor a replay can meet a number that belongs to another barrier. `debug_barrier` joins the threads
    of a program; the release makes what they all stored visible to the device, and the acquire discards what
    the multiprocessor had cached.
    """
    tl.debug_barrier()
    tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    while tl.atomic_add(counter_ptr, 0, sem="acq_rel", scope="gpu") < expected:
        pass
    tl.debug_barrier()


@triton.jit
def unfinished(done_ptr, batch, BLOCK: tl.constexpr):
    """How many matrices are not done. The same number in every program: nobody writes this row again."""
    count = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, batch, BLOCK):
        index = start + tl.arange(0, BLOCK)
        count += (tl.load(done_ptr + index, mask=index < batch, other=1) == 0).to(tl.int32)
    return tl.sum(count)


@triton.jit(do_not_specialize=["batch", "tiles", "first", "last", "clean_every"])
def jacobi_kernel(
    matrix_ptr, work_ptr, k_ptr, q_ptr, p_ptr, k_norm_ptr, q_norm_ptr, done_ptr, counter_ptr, out_ptr,
    n, batch, tiles, first, last, threshold, limit, step, alpha, clean_every,
    CLEAN: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
    COUNT: tl.constexpr,
):  # fmt: skip
    """Iterations `first` to `last` - 1. Grid: any number of programs that are resident at once.

    `work` is two stacks (B, V) (2, batch, n, n): an iteration reads one and writes the other, iteration 0
    reads the first. Without CLEAN all iterations are run, so that the next launch knows where the stack is.
    With it there is a clean-up every `clean_every` iterations, an end once all matrices are done, and V is
    written to `out` in float64.
    """
    me, programs = tl.program_id(0), tl.num_programs(0)
    a_stack = 2 * batch.to(tl.int64) * n * n
    a_matrix = tl.cast(n, tl.int64) * n
    plane = tiles * tiles
    side = first % 2
    iteration = first + 0
    expected = programs * 0
    active = tl.full((), 1, tl.int32)
    if CLEAN:
        active = unfinished(done_ptr + iteration * batch, batch, 64)
    while (iteration < last) & (active > 0):
        done = done_ptr + iteration * batch
        if CLEAN:  # noqa: SIM102 - known when compiling, the other when running
            if (iteration - first) % clean_every == 0:
                stack, other = work_ptr + side * a_stack, work_ptr + (1 - side) * a_stack
                v, new_v = stack + batch * a_matrix, other + batch * a_matrix
                for item in range(me, plane * batch, programs):
                    i, j, b = item // tiles % tiles, item % tiles, (item // plane).to(tl.int64)
                    defect_tile(v, p_ptr, done, i, j, b, n, PRECISION, BLOCK, BLOCK_K)
                expected += programs
                barrier(counter_ptr, expected)
                for item in range(me, plane * batch, programs):
                    i, j, b = item // tiles % tiles, item % tiles, (item // plane).to(tl.int64)
                    multiply_tile(
                        v, p_ptr, v, new_v, done, i, j, b, n, batch, True, PRECISION, BLOCK, BLOCK_K
                    )
                expected += programs
                barrier(counter_ptr, expected)
                for item in range(me, plane * batch, programs):
                    i, j, b = item // tiles % tiles, item % tiles, (item // plane).to(tl.int64)
                    multiply_tile(
                        matrix_ptr, new_v, stack, other, done, i, j, b, n, batch,
                        False, PRECISION, BLOCK, BLOCK_K,
                    )  # fmt: skip
                expected += programs
                barrier(counter_ptr, expected)
                side = 1 - side
        now, later = work_ptr + side * a_stack, work_ptr + (1 - side) * a_stack
        for item in range(me, plane * batch, programs):
            i, j, b = item // tiles % tiles, item % tiles, (item // plane).to(tl.int64)
            angles_tile(now, k_ptr, k_norm_ptr, done, i, j, b, tiles, n, threshold, PRECISION, BLOCK, BLOCK_K)
        expected += programs
        barrier(counter_ptr, expected)
        for item in range(me, plane * batch, programs):
            i, j, b = item // tiles % tiles, item % tiles, (item // plane).to(tl.int64)
            square_tile(
                k_ptr, q_ptr, k_norm_ptr, q_norm_ptr, done, done + batch, i, j, b, tiles, n, limit,
                PRECISION, BLOCK, BLOCK_K, COUNT,
            )  # fmt: skip
        expected += programs
        barrier(counter_ptr, expected)
        for item in range(me, plane * batch, programs):
            i, j, b = item // tiles % tiles, item % tiles, (item // plane).to(tl.int64)
            polynomial_tile(
                k_ptr, q_ptr, p_ptr, q_norm_ptr, done, i, j, b, tiles, n, step, alpha,
                PRECISION, BLOCK, BLOCK_K, COUNT,
            )  # fmt: skip
        expected += programs
        barrier(counter_ptr, expected)
        for item in range(me, plane * batch * 2, programs):
            i, j, m = item // tiles % tiles, item % tiles, (item // plane).to(tl.int64)
            multiply_tile(now, p_ptr, now, later, done, i, j, m, n, batch, True, PRECISION, BLOCK, BLOCK_K)
        expected += programs
        barrier(counter_ptr, expected)
        side = 1 - side
        iteration += 1
        if CLEAN:
            active = unfinished(done_ptr + iteration * batch, batch, 64)
    if CLEAN:
        v = work_ptr + side * a_stack + batch * a_matrix
        for item in range(me, plane * batch, programs):
            i, j, b = item // tiles % tiles, item % tiles, (item // plane).to(tl.int64)
            rows = (i * BLOCK + tl.arange(0, BLOCK))[:, None]
            columns = (j * BLOCK + tl.arange(0, BLOCK))[None, :]
            x = load(v + b * a_matrix, rows, columns, n).to(tl.float64)
            inside = (rows < n) & (columns < n)
            tl.store(out_ptr + b * a_matrix + rows * n + columns, x, mask=inside)
