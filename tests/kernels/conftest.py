"""Fixtures of the kernel tests."""

from collections.abc import Callable

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh buffers with NaN, so that a value nobody wrote is seen."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))


def _poisoned(create: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def wrapped(*args: object, **kwargs: object) -> torch.Tensor:
        buffer = create(*args, **kwargs)
        return buffer.fill_(torch.nan) if buffer.is_floating_point() else buffer

    return wrapped


@pytest.fixture
def gaussian() -> Callable[..., torch.Tensor]:
    """Draw a float32 Gaussian tensor from its own generator: `gaussian(4, 16, 16, seed=3)`."""

    def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)

    return draw
