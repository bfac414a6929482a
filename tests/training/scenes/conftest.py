from pathlib import Path

import pytest

from support.worlds import build_small


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenes model of the right form that has learned nothing."""
    return build_small("scenes", tmp_path_factory)
