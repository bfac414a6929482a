"""GPU operators of NPNet, each beside its PyTorch reference. Needs torch; uses Triton when present."""

from npnet_kernels.errors import (
    BackendUnavailableError,
    KernelError,
    KernelInputError,
    SVDConvergenceError,
    SVDInputError,
)
from npnet_kernels.linalg.signs import SIGN_RULE, canonical_signs
from npnet_kernels.linalg.svd import SVD, choose_solver, svd

__all__ = [
    "SIGN_RULE",
    "SVD",
    "BackendUnavailableError",
    "KernelError",
    "KernelInputError",
    "SVDConvergenceError",
    "SVDInputError",
    "canonical_signs",
    "choose_solver",
    "svd",
]
