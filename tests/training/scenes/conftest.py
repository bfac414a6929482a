from pathlib import Path

import pytest

from support.scenes import SMALL


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the right form that has learned nothing."""
    build = pytest.importorskip("npnet_training.scenes.build")
    folder = tmp_path_factory.mktemp("scenes") / "model"
    build.build(build.BuildSettings(output=folder, **SMALL))
    return folder
