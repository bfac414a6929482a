from __future__ import annotations

import json

import pytest

from npnet_runtime import NPNetConfig
from npnet_runtime.errors import ConfigError
from npnet_runtime.networks.npnet_config import SwinConfig
from npnet_runtime.weights.models import MODELS, get_model
from support.networks import SHAPES


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_survives_json(config: NPNetConfig) -> None:
    assert NPNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latent_channels": 5}, "square number"),
        ({"latent_height": 0}, "positive"),
        ({"latent_width": 12.5}, "positive"),
        ({"text_tokens": True}, "positive"),
        ({"spectral_heads": 7}, "divisor of 256"),
        ({"swin": {"image_size": 224}}, "SwinConfig"),
    ],
)
def test_impossible_networks(changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        NPNetConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": 225}, "multiple of 32"),
        ({"image_size": 256}, "do not tile"),
        ({"depths": (2, 2)}, "as many"),
        ({"num_heads": (5, 6, 12, 24)}, "96 channels"),
        ({"depths": (2, 2, 0, 2)}, "positive"),
    ],
)
def test_impossible_swin(changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SwinConfig(**changes)


@pytest.mark.parametrize("values", [{}, {"latent_channels": 4}, [], {**NPNetConfig().to_dict(), "more": 1}])
def test_incomplete_dict(values: object) -> None:
    with pytest.raises(ConfigError, match="expected the fields"):
        NPNetConfig.from_dict(values)  # type: ignore[arg-type]


def test_registry() -> None:
    assert list(MODELS) == ["sdxl", "dreamshaper-xl-v2-turbo", "hunyuan-dit"]
    assert get_model("hunyuan-dit").config.text_shape == (77, 1024)
    with pytest.raises(ConfigError, match="expected one of sdxl"):
        get_model("flux")
