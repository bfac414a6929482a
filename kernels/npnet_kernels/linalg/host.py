"""The library solvers: host LAPACK, reached through pinned copies, and `torch.linalg.svd` in place."""

import torch
from torch import Tensor

from npnet_kernels.errors import SVDConvergenceError
from npnet_kernels.linalg.batching import one_by_one

Factors = tuple[Tensor, Tensor, Tensor]


def lapack_svd(matrix: Tensor) -> Factors:
    """Thin SVD by LAPACK's divide and conquer (`dgesdd`) on the host, in double precision.

    Single precision (`sgesdd`) takes 6 ms instead of 11 for a 256 x 256 Gaussian matrix on one core, but
    leaves the worst vectors wrong by up to 5e-3: enough for golden noise to differ from one LAPACK build to
    the next.

    Args:
        matrix: `(B, R, C)` float32, on the CPU or a CUDA device.

    Returns:
        `u` (B, R, k), `s` (B, k), `vh` (B, k, C), float32, on the device of `matrix`.

    Raises:
        SVDConvergenceError: LAPACK reports that it did not converge.
    """
    if not matrix.is_cuda:
        return _double_svd(matrix)
    staged = torch.empty(matrix.shape, dtype=matrix.dtype, device="cpu", pin_memory=True)
    staged.copy_(matrix, non_blocking=True)
    torch.cuda.current_stream(matrix.device).synchronize()
    u, s, vh = (x.pin_memory() for x in _double_svd(staged))
    device = matrix.device
    return u.to(device, non_blocking=True), s.to(device, non_blocking=True), vh.to(device, non_blocking=True)


def library_svd(matrix: Tensor) -> Factors:
    """`torch.linalg.svd` wherever the matrix lives, one matrix after another. As `lapack_svd` otherwise."""
    try:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError as error:
        library = "cuSOLVER" if matrix.is_cuda else "LAPACK"
        raise SVDConvergenceError(
            f"{library} did not converge on a {tuple(matrix.shape)} batch: {error}"
        ) from error
    return u, s, vh


def _double_svd(matrix: Tensor) -> Factors:
    u, s, vh = one_by_one(library_svd, matrix.double())
    return u.float(), s.float(), vh.float()
