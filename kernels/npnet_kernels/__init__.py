"""GPU operators of NPNet, each beside its PyTorch reference. Needs torch; uses Triton when present."""

from npnet_kernels.affine.text_affine import text_affine
from npnet_kernels.backends import choose_backend
from npnet_kernels.errors import (
    BackendUnavailableError,
    KernelError,
    KernelInputError,
    SVDConvergenceError,
    SVDInputError,
)
from npnet_kernels.linalg.signs import SIGN_RULE, canonical_signs
from npnet_kernels.linalg.svd import SVD, choose_solver, svd
from npnet_kernels.reconstruction.grid import latent_to_matrix, matrix_to_latent
from npnet_kernels.reconstruction.reconstruct import (
    combine,
    combine_with_peak,
    reconstruct,
    spectral_correction,
)

__all__ = [
    "SIGN_RULE",
    "SVD",
    "BackendUnavailableError",
    "KernelError",
    "KernelInputError",
    "SVDConvergenceError",
    "SVDInputError",
    "canonical_signs",
    "choose_backend",
    "choose_solver",
    "combine",
    "combine_with_peak",
    "latent_to_matrix",
    "matrix_to_latent",
    "reconstruct",
    "spectral_correction",
    "svd",
    "text_affine",
]
