"""What `kernels.py` measures: inputs, rivals, exact result and work, per operator and batch."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from npnet_kernels import SVD, canonical_signs, combine, latent_to_matrix, reconstruct, svd, text_affine
from npnet_kernels.affine.reference import text_affine_reference
from npnet_kernels.linalg.choice import Solver
from npnet_kernels.linalg.driver import VARIABLE
from npnet_kernels.linalg.jacobi_launch import jacobi_vectors
from npnet_kernels.linalg.refinement import finish, refine
from npnet_kernels.linalg.scaling import normalise
from npnet_kernels.linalg.tail_launch import EntrywiseKernels
from npnet_kernels.reconstruction.reference import combine_reference, spectral_reference

WEIGHTS: Any = {"text_weight": 0.34, "residual_weight": 0.05}  # for `**`, among arguments of other types
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Sizes:
    """Sizes of one run: SDXL's, or small ones for the interpreter."""

    latent: int = 128
    tokens: int = 77
    dim: int = 2048
    compact_rows: int = 7
    channels: int = 4


@dataclass(frozen=True)
class Case:
    """One operator at one batch.

    Attributes:
        operator: its name.
        batch: images.
        ours: the kernel; returns what is compared.
        rivals: other ways to the same result; the first is the PyTorch composition, the base of speed-ups.
        exact: the float64 result, on the CPU.
        tolerance: the largest absolute error at which a speed-up may be stated, ours and the rival's.
        read_write: bytes that any implementation moves.
        flops: floating-point operations that any implementation does; 0 where no fair count exists.
        capturable: names of the runs that a CUDA graph can hold.
    """

    operator: str
    batch: int
    ours: Run
    rivals: dict[str, Run]
    exact: Callable[[], Tensor]
    tolerance: float
    read_write: int
    flops: int
    capturable: frozenset[str] = field(default=frozenset({"ours", "pytorch", "torch.compile"}))


def svd_case(batch: int, sizes: Sizes, device: torch.device, _: torch.dtype) -> Case:
    """Judged by `U diag(f) Vh` with |f| = 5 % of s, which is all that the network does with the factors."""
    n = 2 * sizes.latent
    matrix = draw(batch, n, n, seed=batch).to(device)
    exact = torch.linalg.svd(matrix.cpu().double())
    f = (0.05 * exact.S * draw(batch, n, seed=1)).float().to(device)

    def correction(factors: SVD) -> Tensor:
        return (factors.u.float() * f.unsqueeze(1)) @ factors.vh.float()

    def with_solver(solver: Solver) -> Run:
        return lambda: correction(svd(matrix, solver=solver))

    def interpreted() -> Tensor:
        scaled, scale = normalise(matrix)
        kernels = EntrywiseKernels()
        refined = refine(scaled, jacobi_vectors(scaled), entrywise=kernels)
        u, s, vh, _ = finish(refined, scale, entrywise=kernels)
        u, vh = canonical_signs(u, vh)
        return correction(SVD(u, s, vh))

    def in_phases() -> Tensor:
        """Jacobi by one launch a phase, beside the two cooperative launches of `ours`."""
        with patch.dict(os.environ, {VARIABLE: "phases"}):
            return correction(svd(matrix, solver="jacobi"))

    rivals = {"pytorch": with_solver("torch"), "gram": with_solver("gram"), "lapack": with_solver("lapack")}
    if device.type == "cuda":
        rivals["phases"] = in_phases
    products = 5 * 22 + 20  # of the Jacobi iterations and of the tail
    return Case(
        "svd", batch, with_solver("jacobi") if device.type == "cuda" else interpreted, rivals,
        lambda: (exact.U * f.cpu().double().unsqueeze(1)) @ exact.Vh, 1e-4, 4 * batch * (3 * n * n + n),
        2 * n**3 * batch * products, frozenset({"ours", "phases"}),
    )  # fmt: skip


def reconstruct_case(batch: int, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """Everything after the two halves of the network."""
    h, c = sizes.latent, sizes.channels
    noise = draw(batch, c, h, h, seed=batch).to(device, dtype)
    factors = svd(latent_to_matrix(noise.float().cpu()))
    f = 0.05 * factors.s * draw(batch, 2 * h, seed=1)
    scale_shift, residual = draw(batch, 2 * c, seed=2), draw(batch, c, sizes.compact_rows, h, seed=3)
    operands = [x.to(device) for x in (factors.u, f, factors.vh, scale_shift, residual)]

    def composition(
        noise: Tensor, u: Tensor, f: Tensor, vh: Tensor, scales: Tensor, residual: Tensor
    ) -> Tensor:
        spectral = spectral_reference(noise, u, f, vh)
        return combine_reference(spectral, noise, scales, residual, *WEIGHTS.values())

    compiled = compiled_if_on_a_gpu(composition, device)
    half = dtype != torch.float32
    n, size = 2 * h, c * h * h
    moved = batch * (2 * size * dtype.itemsize + 4 * (2 * n * n + n + 2 * c + c * sizes.compact_rows * h))
    return Case(
        "reconstruct", batch, lambda: reconstruct(noise, *operands, **WEIGHTS, backend="triton"),
        {"pytorch": lambda: composition(noise, *operands), **maybe(compiled, noise, *operands)},
        lambda: composition(*(x.cpu().double() for x in (noise, *operands))), 8e-3 if half else 1e-4,
        moved, batch * (2 * n**3 + 8 * size),
    )  # fmt: skip


def combine_case(batch: int, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """The part of the reconstruction that waits for the prompt, when the spectral part came ahead of time."""
    h, c = sizes.latent, sizes.channels
    noise, spectral = (
        draw(batch, c, h, h, seed=batch).to(device, dtype),
        draw(batch, c, h, h, seed=1).to(device),
    )
    scale_shift = draw(batch, 2 * c, seed=2).to(device)
    residual = draw(batch, c, sizes.compact_rows, h, seed=3).to(device)
    operands = (spectral, noise, scale_shift, residual)

    def composition(*operands: Tensor) -> Tensor:
        return combine_reference(*operands, *WEIGHTS.values())

    compiled = compiled_if_on_a_gpu(composition, device)
    half = dtype != torch.float32
    size = c * h * h
    return Case(
        "combine",
        batch,
        lambda: combine(*operands, **WEIGHTS, backend="triton"),
        {"pytorch": lambda: composition(*operands), **maybe(compiled, *operands)},
        lambda: composition(*(x.cpu().double() for x in operands)),
        8e-3 if half else 1e-4,
        batch * (size * (2 * dtype.itemsize + 4) + 4 * (2 * c + c * sizes.compact_rows * h)),
        batch * 8 * size,
    )


def affine_case(batch: int, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Case:
    """The product of all of a prompt's embeddings with 8 rows of weights."""
    outputs, terms = 2 * sizes.channels, sizes.tokens * sizes.dim
    prompt = draw(batch, sizes.tokens, sizes.dim, seed=batch).to(device, dtype)
    weight = (draw(outputs, terms, seed=1) / terms**0.5).to(device, dtype)
    bias = draw(outputs, seed=2).to(device)

    def composition(prompt: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.linear(prompt.flatten(1), weight, bias.to(weight.dtype))

    compiled = compiled_if_on_a_gpu(composition, device)
    half = dtype != torch.float32
    return Case(
        "text_affine", batch, lambda: text_affine(prompt, weight, bias, backend="triton"),
        {
            "pytorch": lambda: composition(prompt, weight, bias).float(),
            **maybe(compiled, prompt, weight, bias),
            "reference": lambda: text_affine_reference(prompt, weight, bias),
        },
        lambda: composition(*(x.cpu().double() for x in (prompt, weight, bias))), 1e-2 if half else 1e-4,
        dtype.itemsize * terms * (batch + outputs) + 4 * batch * outputs, 2 * batch * outputs * terms,
    )  # fmt: skip


MAKERS: dict[str, Callable[[int, Sizes, torch.device, torch.dtype], Case]] = {
    "svd": svd_case,
    "reconstruct": reconstruct_case,
    "combine": combine_case,
    "text_affine": affine_case,
}
"""Operator -> its case at a batch. On a CPU device the kernels run in the interpreter."""


def compiled_if_on_a_gpu(function: Callable[..., Any], device: torch.device) -> Callable[..., Any] | None:
    """The function by `torch.compile`, where that is a fair rival."""
    return torch.compile(function) if device.type == "cuda" else None


def maybe(compiled: Callable[..., Tensor] | None, *operands: Tensor) -> dict[str, Run]:
    """A rival, if there is one."""
    return {"torch.compile": lambda: compiled(*operands)} if compiled else {}


def draw(*shape: int, seed: int) -> Tensor:
    """Standard normal values, float32 on the CPU."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
