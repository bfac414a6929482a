"""A float32 engine on CUDA never computes in TF32: it refuses, or turns it off while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from npnet_kernels.precision import products_in_tf32
from npnet_runtime.backends.float32 import Float32Products
from npnet_runtime.errors import BackendError
from support.networks import SMALL, SMALL_ATTENTION

CUDA = torch.device("cuda", 0)


def products(precision: str, config: Any = SMALL, device: torch.device = CUDA) -> Float32Products:
    return Float32Products(SimpleNamespace(precision=precision, config=config), device)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(
    "turn_on",
    [
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    ],
)
def test_products_in_tf32_are_refused(turn_on: Any) -> None:
    assert not products_in_tf32()
    with products("fp32")():
        pass
    turn_on()
    assert products_in_tf32()
    with pytest.raises(BackendError, match=r"set_float32_matmul_precision\('highest'\)"), products("fp32")():
        pytest.fail("it ran")
    for unaffected in (products("fp16"), products("fp32", device=torch.device("cpu"))):
        with unaffected():
            pass


def test_convolutions_are_exact_while_it_runs() -> None:
    assert torch.backends.cudnn.allow_tf32  # PyTorch's default
    with products("fp32", SMALL_ATTENTION)():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    with products("fp16", SMALL_ATTENTION)():
        assert torch.backends.cudnn.allow_tf32
    with products("fp32", SMALL)():  # has no convolution
        assert torch.backends.cudnn.allow_tf32


def test_settings_come_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="within"), products("fp32", SMALL_ATTENTION)():
        raise ValueError("within")
    assert torch.backends.cudnn.allow_tf32
