from pathlib import Path

import pytest

from support.shapes import SMALL


@pytest.fixture(scope="session")
def small() -> dict[str, int]:
    """Settings of a build that takes seconds."""
    return SMALL


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the right form that has learned nothing."""
    build = pytest.importorskip("npnet_training.shapes.build")
    folder = tmp_path_factory.mktemp("shapes") / "model"
    build.build(build.BuildSettings(output=folder, **SMALL))
    return folder
