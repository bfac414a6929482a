"""Which solver runs, decided by a pure function that can say why."""

from dataclasses import dataclass
from typing import Literal, get_args

from npnet_kernels.backends import NO_TRITON
from npnet_kernels.errors import SVDInputError

Solver = Literal["auto", "lapack", "gram", "jacobi", "torch"]
SMALLEST, LARGEST = 16, 512
"""Sides the product-based solvers take; below, their fixed costs dominate, above nothing was tested."""


@dataclass(frozen=True)
class Situation:
    """What the choice depends on: the sides of the matrix, where it lives, what surrounds the call.

    `eigh_batched`: PyTorch's `eigh` gives a batch to cuSOLVER at once. `jacobi_driver`: how Jacobi would be
    launched, for the reason.
    """

    rows: int
    columns: int
    cuda: bool
    capturing: bool = False
    has_triton: bool = False
    eigh_batched: bool = True
    jacobi_driver: str = ""


@dataclass(frozen=True)
class Candidate:
    """A solver, the reason it was rejected (None when it can run), and what speaks for it."""

    solver: str
    rejected: str | None
    merit: str = ""


@dataclass(frozen=True)
class Choice:
    """The solver chosen, why, and all candidates in the order they were considered."""

    solver: str
    reason: str
    candidates: tuple[Candidate, ...]

    def __str__(self) -> str:
        lines = [f"svd: {self.solver} ({self.reason})"]
        for c in self.candidates:
            lines.append(f"  {c.solver}: {c.rejected or ': '.join(filter(None, ('can run', c.merit)))}")
        return "\n".join(lines)


def choose(situation: Situation, requested: str = "auto") -> Choice:
    """Pick the solver for `situation`.

    Raises:
        SVDInputError: `requested` is no solver, or cannot run here.
    """
    if requested not in get_args(Solver):
        raise SVDInputError(f"solver: expected one of {', '.join(get_args(Solver))}; given {requested!r}")
    preferences = _preferences(situation)
    if requested != "auto":
        merit = preferences.get(requested, "")
        candidate = Candidate(requested, _rejection(requested, situation), merit)
        if candidate.rejected:
            raise SVDInputError(
                f"solver {requested!r} cannot run here: {candidate.rejected}. Use solver='auto'"
            )
        return Choice(requested, "requested", (candidate,))
    candidates = tuple(
        Candidate(name, _rejection(name, situation), merit) for name, merit in preferences.items()
    )
    for candidate in candidates:
        if candidate.rejected is None:
            return Choice(candidate.solver, preferences[candidate.solver], candidates)
    reasons = "; ".join(f"{c.solver}: {c.rejected}" for c in candidates)
    raise SVDInputError(f"no solver can run here ({reasons}). Compute the SVD before the capture")


def _preferences(at: Situation) -> dict[str, str]:
    """Solvers in the order they are considered, and what speaks for each."""
    if not at.cuda:
        return {"lapack": "accurate, and takes any shape"}
    launched = f", {at.jacobi_driver}" if at.jacobi_driver else ""
    anything = {"torch": "takes any shape"}
    if at.eigh_batched or at.capturing:
        jacobi = f"the only solver that a CUDA graph can hold{launched}"
        return {"gram": "accurate, on the device", "jacobi": jacobi} | anything
    # By version and not by batch: a matrix's result must not depend on how many others there are.
    jacobi = f"a batch at once{launched}; `eigh` of this PyTorch takes one matrix after another"
    return {"jacobi": jacobi, "gram": "accurate, on the device, one matrix after another"} | anything


def _rejection(solver: str, at: Situation) -> str | None:
    if solver in ("gram", "jacobi") and (at.rows != at.columns or not SMALLEST <= at.rows <= LARGEST):
        return (
            f"it takes square matrices of side {SMALLEST} to {LARGEST}, this one is {at.rows} x {at.columns} "
            "(solvers 'lapack' and 'torch' take any)"
        )
    if at.capturing and solver != "jacobi":
        return "a CUDA graph is being captured, and this solver synchronises with the host"
    if solver == "jacobi" and at.cuda and not at.has_triton:
        return f"it runs by Triton on CUDA: {NO_TRITON}"
    return None
