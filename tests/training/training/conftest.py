from __future__ import annotations

from pathlib import Path

import pytest

from support.training import write_training_pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise pairs of a small SDXL."""
    return write_training_pairs(tmp_path_factory.mktemp("training"))
