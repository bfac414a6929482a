"""These tests launch Triton kernels: on a GPU with `-m gpu`, or on the CPU with TRITON_INTERPRET=1.

The interpreter has to be chosen before Triton is imported, so in a plain run `test_interpreter.py`, one
folder up, starts them in processes of their own.
"""

from pathlib import Path

import pytest
import torch

from npnet_kernels.backends import interpreting

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if interpreting():
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if interpreting() else "cuda")


@pytest.fixture
def full_size() -> bool:
    """Whether sizes as in production are affordable: on a device, not in the interpreter."""
    return not interpreting()
