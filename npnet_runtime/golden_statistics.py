"""What golden noise looks like beside the noise it was made of, and when it has collapsed.

A denoiser expects noise of unit variance without structure. A network that was trained on targets which are
independent of their sources learns to take the noise away, for no other answer has a smaller squared error:
golden noise shrinks towards nothing, and images with it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

STATISTICS = ("std", "norm_ratio", "cosine", "neighbours", "change")
SHRUNK, GROWN, AGAINST, SMOOTH = 0.5, 2.0, 0.8, 0.5


def golden_statistics(golden: Tensor, noise: Tensor, others: Tensor | None = None) -> dict[str, float]:
    """Means over a batch.

    Args:
        golden: (B, C, H, W) golden noise.
        noise: that it was made of.
        others: golden noise of the same noise with prompts of others.

    Returns:
        `std` of golden noise; `norm_ratio`, its norm over the noise's; `cosine` of the change and the negated
        noise; `neighbours`, correlation of places beside and below each other; `change`, its norm over the
        noise's; with `others` also `any_prompt`, the share of the change that other prompts give as well.
    """
    after, before = golden.double().flatten(1), noise.double().flatten(1)
    changed, norm = after - before, before.norm(dim=1)
    whole = golden.double()
    power = whole.square().mean((1, 2, 3)).clamp_min(1e-30)
    beside = (whole[..., 1:] * whole[..., :-1]).mean((1, 2, 3))
    below = (whole[..., 1:, :] * whole[..., :-1, :]).mean((1, 2, 3))
    found = {
        "std": after.std(1),
        "norm_ratio": after.norm(dim=1) / norm,
        "cosine": F.cosine_similarity(changed, -before, dim=1),
        "neighbours": (beside + below) / 2 / power,
        "change": changed.norm(dim=1) / norm,
    }
    means = {name: float(value.mean()) for name, value in found.items()}
    if others is not None:
        again = others.double().flatten(1) - before
        both, own = (changed * again).sum(), changed.square().sum()
        means["any_prompt"] = float((both / own).clamp(0, 1)) if own else 1.0
    return means


def collapse_of(found: Mapping[str, float]) -> list[str]:
    """What is wrong with golden noise of such statistics, in words; nothing if it may be used."""
    ratio, change = found["norm_ratio"], found["change"]
    cosine, neighbours = found["cosine"], found["neighbours"]
    problems = []
    if not SHRUNK <= ratio <= GROWN:  # NaN as well
        problems.append(f"its norm is {ratio:.2f} of the noise's (expected {SHRUNK} to {GROWN})")
    if cosine > AGAINST and change > SHRUNK:
        problems.append(
            f"it takes the noise away: the change is {change:.2f} of the noise, with a cosine of "
            f"{cosine:.2f} to the negated noise (expected at most {AGAINST})"
        )
    if abs(neighbours) > SMOOTH:
        problems.append(f"neighbours have a correlation of {neighbours:.2f} (expected at most {SMOOTH})")
    return problems


def related(target: Tensor, source: Tensor) -> float:
    """Mean cosine of targets and their sources, (B, C, H, W) both; about 0 where they are independent."""
    found = F.cosine_similarity(target.double().flatten(1), source.double().flatten(1), dim=1)
    return float(torch.nanmean(found))
