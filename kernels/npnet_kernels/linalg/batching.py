"""Batches on the CPU, one matrix at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def one_by_one(solve: Callable[[Tensor], Sequence[Tensor]], batch: Tensor) -> tuple[Tensor, ...]:
    """Apply `solve` to every matrix of a non-empty batch and stack its results.

    A matrix's result must not depend on its neighbours to the last bit. Batched products may be blocked
    otherwise than single ones, and LAPACK rounds otherwise when a matrix begins at another alignment, as it
    may within a batch; so each is copied to memory of its own.
    """
    parts = [solve(matrix.clone(memory_format=torch.contiguous_format)) for matrix in batch]
    return tuple(torch.stack(part) for part in zip(*parts, strict=True))
