"""Survey the SVD solvers on Gaussian draws, against a float64 SVD, on the CPU.

    python benchmarks/kernels_accuracy.py --seeds 2000 --out benchmarks/results/kernels_accuracy.json

Seed i draws one n x n matrix from `torch.Generator().manual_seed(i)`. The correction is `U diag(f) Vh` with
f Gaussian of 0.8 s, as harsh as the parity fixture; trained weights are near 0.05 s. `gram` and `jacobi` are
judged before rounding to float32, and only where certified: `svd` solves the others again.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from harness import environment, write_json
from npnet_kernels import svd
from npnet_kernels.linalg.gram import gram_svd
from npnet_kernels.linalg.jacobi import jacobi_svd, jacobi_vectors_reference, tf32_product
from npnet_kernels.linalg.refinement import TOLERANCE, Refined, finish, refine
from npnet_kernels.linalg.scaling import normalise
from npnet_kernels.linalg.tail import permute_columns

Factors = tuple[Tensor, Tensor]  # u and v in float64, vectors in columns


@dataclass
class Record:
    """What one solver did over all draws."""

    certified: int = 0
    worst_vector: float = 0.0
    worst_correction: float = 0.0
    not_certified: list[int] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    def add(
        self, seed: int, factors: Factors | None, exact: tuple[Tensor, Tensor, Tensor], f: Tensor
    ) -> None:
        """Judge the factors of one draw; None where the solver had no certificate."""
        if factors is None:
            self.not_certified.append(seed)
            return
        u, v = factors
        exact_u, _, exact_vh = exact
        sign = (v * exact_vh.mT).sum(0).sign()
        vectors = (v * sign - exact_vh.mT, u * sign - exact_u)
        self.certified += 1
        self.worst_vector = max(self.worst_vector, *(float(x.norm(dim=0).max()) for x in vectors))
        difference = (u * f) @ v.mT - (exact_u * f) @ exact_vh
        self.worst_correction = max(self.worst_correction, float(difference.abs().max()))


def by_library(solver: str) -> Callable[[Tensor], Factors]:
    """Factors as `svd` returns them, rounded to float32."""

    def solve(matrix: Tensor) -> Factors:
        u, _, vh = svd(matrix, solver=solver)  # type: ignore[arg-type]
        return u.double(), vh.mT.double()

    return solve


def by_products(method: Callable[[Tensor], Refined]) -> Callable[[Tensor], Factors | None]:
    """Factors before `finish` rounds them, sorted as it does, or None without a certificate."""

    def solve(matrix: Tensor) -> Factors | None:
        refined = method(normalise(matrix[None])[0])
        if not finish(refined).residual[0] <= TOLERANCE:
            return None
        s = refined.s[0]
        order = s.abs().sort(descending=True, stable=True).indices
        u, v = refined.x[0, 0] * torch.where(s < 0, -1, 1), refined.x[1, 0]
        return permute_columns(u, order), permute_columns(v, order)

    return solve


def jacobi_in_tf32(matrix: Tensor) -> Refined:
    """`jacobi` as the kernels compute it: operands of the coarse phase rounded to TF32, which they round."""
    vectors = jacobi_vectors_reference(matrix[0].float(), coarse_product=tf32_product)
    return refine(matrix, vectors.double()[None])


SOLVERS: dict[str, Callable[[Tensor], Factors | None]] = {
    "gram": by_products(gram_svd),
    "jacobi": by_products(jacobi_svd),
    "jacobi, TF32": by_products(jacobi_in_tf32),
    "lapack": by_library("lapack"),
    "torch": by_library("torch"),
}


def main() -> None:
    """Run the survey and print one line a solver."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    records = {name: Record() for name in SOLVERS}
    for seed in range(options.seeds):
        matrix = torch.randn(options.side, options.side, generator=torch.Generator().manual_seed(seed))
        exact = torch.linalg.svd(matrix.double())
        draws = torch.randn(options.side, generator=torch.Generator().manual_seed(10**6 + seed))
        f = 0.8 * exact[1] * draws
        for name, solve in SOLVERS.items():
            start = time.perf_counter()
            factors = solve(matrix)
            records[name].milliseconds.append((time.perf_counter() - start) * 1e3)
            records[name].add(seed, factors, exact, f)
    results = {}
    for name, record in records.items():
        median = statistics.median(record.milliseconds)
        results[name] = asdict(record) | {"milliseconds": round(median, 2)}
        print(
            f"{name:12} {record.certified}/{options.seeds} certified, "
            f"worst vector {record.worst_vector:.1e}, worst correction {record.worst_correction:.1e}, "
            f"median {median:.1f} ms"
        )
    if options.out:
        surroundings = environment(torch.device("cpu"))
        write_json(
            options.out, {"environment": surroundings, "side": options.side, "seeds": options.seeds} | results
        )


if __name__ == "__main__":
    main()
