from pathlib import Path
from typing import Any

import pytest

from support.worlds import SMALL, build_small


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Settings of a build of the shapes model that takes seconds."""
    return SMALL["shapes"]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shapes model of the right form that has learned nothing."""
    return build_small("shapes", tmp_path_factory)
