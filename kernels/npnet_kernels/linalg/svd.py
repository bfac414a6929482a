"""The public `svd`: checks, choice of solver, certification, signs."""

import logging
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from npnet_kernels.backends import device_guard, full_precision, has_triton
from npnet_kernels.errors import SVDInputError
from npnet_kernels.linalg.choice import Choice, Situation, Solver, choose
from npnet_kernels.linalg.driver import driver_for
from npnet_kernels.linalg.gram import eigh_batched, gram_svd
from npnet_kernels.linalg.host import Factors, lapack_svd, library_svd
from npnet_kernels.linalg.jacobi import jacobi_svd
from npnet_kernels.linalg.refinement import TOLERANCE, finish
from npnet_kernels.linalg.scaling import normalise
from npnet_kernels.linalg.signs import canonical_signs

Signs = Literal["canonical", "as-is"]
log = logging.getLogger(__name__)


class SVD(NamedTuple):
    """Thin factors: `u` (..., R, k), `s` (..., k) descending, `vh` (..., k, C), with k = min(R, C)."""

    u: Tensor
    s: Tensor
    vh: Tensor


def svd(matrix: Tensor, *, solver: Solver = "auto", signs: Signs = "canonical") -> SVD:
    """Thin singular value decomposition of a batch of matrices, `matrix = u @ diag(s) @ vh`.

    Args:
        matrix: `(..., R, C)` float32, any strides. A matrix's result does not depend on its neighbours; its
            last bits may with `"torch"`, and on CUDA, where cuBLAS may round the tail's float64 products (by
            1e-16) and cuSOLVER its eigenvectors otherwise in another size of batch.
        solver: `"auto"` lets `choose_solver` decide; `"lapack"` runs on the host; `"gram"` (batched `eigh`)
            and `"jacobi"` (matrix products, fit for CUDA graphs) take square matrices of side 16 to 512;
            `"torch"` is `torch.linalg.svd`.
        signs: `"canonical"` applies `canonical_signs`, `"as-is"` leaves the solver's signs.

    Returns:
        `SVD`, contiguous, on the device of `matrix`.

    Raises:
        SVDInputError: wrong shape, dtype, solver or signs; NaN or infinity in `matrix`.
        SVDConvergenceError: no solver reached the required accuracy.

    Inside a CUDA graph nothing can be raised: there the factors of a matrix that could not be solved are
    all NaN.
    """
    _check(matrix, signs)
    chosen = choose_solver(matrix, solver=solver).solver
    u, s, vh = torch.ops.npnet.svd(matrix, chosen)
    if signs == "canonical":
        u, vh = canonical_signs(u, vh)
    return SVD(u, s, vh)


def choose_solver(matrix: Tensor, *, solver: Solver = "auto") -> Choice:
    """The choice `svd` makes for `matrix`, with the reason; `print()` it to see every candidate.

    Raises:
        SVDInputError: the requested solver cannot take this matrix.
    """
    driven = matrix.is_cuda and has_triton()
    situation = Situation(
        rows=matrix.shape[-2],
        columns=matrix.shape[-1],
        cuda=matrix.is_cuda,
        capturing=_capturing(matrix),
        has_triton=has_triton(),
        eigh_batched=eigh_batched(torch.__version__),
        jacobi_driver=": ".join(driver_for(matrix.device)) if driven else "",
    )
    return choose(situation, solver)


def _check(matrix: Tensor, signs: str) -> None:
    if not isinstance(matrix, Tensor):
        raise SVDInputError(f"matrix: expected a torch.Tensor; given {type(matrix).__name__}")
    if matrix.dim() < 2 or 0 in matrix.shape[-2:]:
        raise SVDInputError(f"matrix: expected shape (..., R, C) with R, C >= 1; given {tuple(matrix.shape)}")
    if matrix.dtype != torch.float32:
        raise SVDInputError(
            f"matrix: expected torch.float32; given {matrix.dtype}. Convert it with matrix.float()"
        )
    if signs not in ("canonical", "as-is"):
        raise SVDInputError(f"signs: expected 'canonical' or 'as-is'; given {signs!r}")


@torch.library.custom_op("npnet::svd", mutates_args=())
def _svd(matrix: Tensor, solver: str) -> Factors:
    *lead, rows, columns = matrix.shape
    k = min(rows, columns)
    flat = matrix.reshape(-1, rows, columns)
    with device_guard(matrix), full_precision(matrix):
        u, s, vh = _dispatch(flat, solver)
    return (
        u.reshape(*lead, rows, k).contiguous(),
        s.reshape(*lead, k).contiguous(),
        vh.reshape(*lead, k, columns).contiguous(),
    )


@_svd.register_fake
def _(matrix: Tensor, solver: str) -> Factors:
    *lead, rows, columns = matrix.shape
    k = min(rows, columns)
    return (
        matrix.new_empty(*lead, rows, k),
        matrix.new_empty(*lead, k),
        matrix.new_empty(*lead, k, columns),
    )


def _dispatch(matrix: Tensor, solver: str) -> Factors:
    batch, rows, columns = matrix.shape
    k = min(rows, columns)
    capturing = _capturing(matrix)
    if not capturing:
        _check_finite(matrix)
    if batch == 0:
        return matrix.new_empty(0, rows, k), matrix.new_empty(0, k), matrix.new_empty(0, k, columns)
    if solver == "lapack":
        return lapack_svd(matrix)
    if solver == "torch":
        return library_svd(matrix)
    return _solve_by_products(matrix, solver, capturing)


def _solve_by_products(matrix: Tensor, solver: str, capturing: bool) -> Factors:
    scaled, scale = normalise(matrix)
    refined = gram_svd(scaled) if solver == "gram" else jacobi_svd(scaled)
    # During a capture no host can look at the residual, and a replay must never pass on unconverged factors.
    u, s, vh, residual = finish(refined, scale, poison=TOLERANCE if capturing else None)
    if capturing:
        return u, s, vh
    failed = ~(residual <= TOLERANCE)
    if failed.any():
        indices = failed.nonzero().squeeze(-1)
        log.warning(
            "svd: %d of %d matrices not certified by %s, solved again by lapack", len(indices), len(u), solver
        )
        for target, again in zip((u, s, vh), lapack_svd(matrix[indices]), strict=True):
            target[indices] = again
    return u, s, vh


def _check_finite(matrix: Tensor) -> None:
    finite = torch.isfinite(matrix).all(-1).all(-1)
    if not finite.all():
        where = (~finite).nonzero().squeeze(-1).tolist()
        raise SVDInputError(
            f"matrix: expected finite values; NaN or infinity in {len(where)} of {len(matrix)} "
            f"matrices, the first at flat batch index {where[0]}. Check what produced the noise"
        )


def _capturing(matrix: Tensor) -> bool:
    return matrix.is_cuda and torch.cuda.is_current_stream_capturing()
