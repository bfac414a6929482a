"""The Triton kernel of the sign rule. Import only where Triton is installed."""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl


@triton.jit
def sign_kernel(
    u_ptr, vh_ptr, r_ptr, u_out_ptr, vh_out_ptr, rows, columns, k,
    BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Flip BLOCK pairs (row of vh, column of u) whose float64 product `<r, v>` is negative."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(1).to(tl.int64)
    vh, u = b * k * columns, b * rows * k
    inside = pair < k
    product = tl.zeros((BLOCK,), dtype=tl.float64)
    for start in range(0, columns, STEP):
        c = start + tl.arange(0, STEP)
        mask = inside[:, None] & (c < columns)[None, :]
        x = tl.load(vh_ptr + vh + pair[:, None] * columns + c[None, :], mask=mask, other=0.0)
        r = tl.load(r_ptr + c, mask=c < columns, other=0.0)
        product += tl.sum(x.to(tl.float64) * r[None, :], axis=1)
    flip = product < 0  # False for NaN
    for start in range(0, columns, STEP):
        c = start + tl.arange(0, STEP)
        mask = inside[:, None] & (c < columns)[None, :]
        offset = vh + pair[:, None] * columns + c[None, :]
        x = tl.load(vh_ptr + offset, mask=mask, other=0.0)
        tl.store(vh_out_ptr + offset, tl.where(flip[:, None], -x, x), mask=mask)
    for start in range(0, rows, STEP):
        c = start + tl.arange(0, STEP)
        mask = (c < rows)[:, None] & inside[None, :]
        offset = u + c[:, None] * k + pair[None, :]
        x = tl.load(u_ptr + offset, mask=mask, other=0.0)
        tl.store(u_out_ptr + offset, tl.where(flip[None, :], -x, x), mask=mask)
