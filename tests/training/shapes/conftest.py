from pathlib import Path

import pytest

_SMALL = {"autoencoder_steps": 3, "decoder_steps": 2, "text_steps": 3, "unet_steps": 4, "weak": 2} | {
    "save_every": 2, "look_every": 2, "scenes": 64, "judged": 1,
}  # fmt: skip


@pytest.fixture(scope="session")
def small() -> dict[str, int]:
    """Settings of a build that takes seconds."""
    return _SMALL


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the right form that has learned nothing."""
    build = pytest.importorskip("npnet_training.shapes.build")
    folder = tmp_path_factory.mktemp("shapes") / "model"
    build.build(build.BuildSettings(output=folder, **_SMALL))
    return folder
