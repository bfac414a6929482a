"""The launch of the fused linear kernel: tiles and precision. Imports Triton when called."""

from dataclasses import dataclass

import torch
from torch import Tensor

from npnet_kernels.backends import launchable
from npnet_kernels.rows.reference import product_precision

PROGRAMS_WANTED = 132  # multiprocessors of an H100
_WIDEST = {torch.float32: 64, torch.float16: 128, torch.bfloat16: 128}  # more would spill registers
_NARROWEST = 16


@dataclass(frozen=True)
class Tiling:
    """Block sizes of `linear_kernel`. None but `block_n` depends on the batch.

    32 rows make every architecture multiply with the same instruction (`mma.sync`: wider tiles would get
    Hopper's and Blackwell's own), and `block_k` sets the order of a sum; so the result of a row is the same
    in every batch.
    """

    block_n: int
    block_k: int
    block_m: int = 32
    num_warps: int = 4
    num_stages: int = 4


def choose_tiling(rows: int, columns: int, width: int, dtype: torch.dtype) -> Tiling:
    """The widest tiles of which there are enough to give every multiprocessor one.

    Args:
        rows: of all images; of one image where the batch is not known, as in an export.
        columns: of the result.
        width: of a row of the input.
        dtype: of the operands.
    """
    row_tiles = -(-rows // Tiling.block_m)
    block_n = _WIDEST[dtype]
    while block_n > _NARROWEST and (
        row_tiles * -(-columns // block_n) < PROGRAMS_WANTED or block_n >= 2 * columns
    ):
        block_n //= 2
    return Tiling(block_n, 64 if dtype != torch.float32 and width % 64 == 0 else 32)


def launch_fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    index: Tensor | None,
    residual: Tensor | None,
    residual_index: Tensor | None,
    gelu: bool,
    eps: float,
) -> Tensor:
    """`(B, N', C')` from operands as `fused_linear` takes them."""
    from npnet_kernels.linear.kernels import linear_kernel

    batch, tokens_in, width = x.shape
    columns, terms = weight.shape
    pieces = 0 if index is None else terms // width
    tokens_out = tokens_in if index is None else index.shape[0] // pieces
    out = torch.empty(batch, tokens_out, columns, dtype=x.dtype, device=x.device)
    if isinstance(batch, int) and batch == 0:
        return out
    x = x.contiguous()
    count = batch * tokens_out
    tiling = choose_tiling(count if isinstance(batch, int) else tokens_out, columns, width, x.dtype)
    grid = (-(-count // tiling.block_m), -(-columns // tiling.block_n))

    def operand(tensor: Tensor | None) -> Tensor:
        return x if tensor is None else tensor.contiguous()  # a pointer that the kernel never follows

    launchable(linear_kernel)[grid](
        x, operand(index), operand(norm_weight), operand(norm_bias), weight.contiguous(), operand(bias),
        operand(residual), operand(residual_index), out,
        count, tokens_in, tokens_out, width, columns,
        EPS=eps, PIECES=pieces, NORM=norm_weight is not None, BIAS=bias is not None, GELU=gelu,
        RESIDUAL=-1 if residual is None else int(residual_index is not None),
        PRECISION=product_precision(x.dtype),
        BLOCK_M=tiling.block_m, BLOCK_N=tiling.block_n, BLOCK_K=tiling.block_k, BLOCK_S=128,
        num_warps=tiling.num_warps, num_stages=tiling.num_stages,
    )  # fmt: skip
    return out
