"""Assembling the embedded model: what is copied, judged and refused."""

import json
from pathlib import Path

import pytest
import torch

from npnet_runtime.networks.npnet_config import NPNetConfig, SwinConfig
from npnet_runtime.networks.prompt_attention import PromptAttentionConfig
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import Network, network_for
from npnet_runtime.weights import checkpoint
from npnet_training import bundle
from npnet_training.embedded import SHAPES
from npnet_training.shapes.networks import TOKENS, WIDTH
from support.damage import alter

pytest.importorskip("diffusers")
SWIN = SwinConfig(image_size=16, patch_size=4, window_size=2, embed_dim=8, depths=(2,), num_heads=(2,))


def network(kind: str, width: int = WIDTH) -> Network:
    if kind == "npnet":
        config = NPNetConfig(4, 16, 16, TOKENS, width, spectral_hidden=8, spectral_mlp_hidden=8, swin=SWIN)
        made = network_for(config)
        made.load_state_dict(random_state(config, 0))
        return made
    torch.manual_seed(0)
    return network_for(PromptAttentionConfig(4, 16, 16, TOKENS, width, channels=(8,), blocks=1, heads=2))


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    folder = tmp_path / "networks"
    folder.mkdir()
    for name in bundle.NETWORKS:
        made = network(name)
        checkpoint.write(folder / f"{name}.safetensors", made.state_dict(), made.config)
    return folder


def assemble(built: Path, networks: Path, output: Path) -> int:
    return bundle.main(
        [
            "--world",
            "shapes",
            "--model",
            str(built),
            "--networks",
            str(networks),
            "--output",
            str(output),
            "--judged",
            "6",
        ]
    )


def test_whole_in_half_precision_and_judged(built: Path, networks: Path, tmp_path: Path) -> None:
    assert assemble(built, networks, tmp_path / "assets") == 0
    files = SHAPES.check(tmp_path / "assets")["files"]
    assert {f"golden/{name}.safetensors" for name in bundle.NETWORKS} <= set(files)
    for name in bundle.NETWORKS:
        given = checkpoint.read(networks / f"{name}.safetensors").state
        kept = checkpoint.read(tmp_path / "assets" / "golden" / f"{name}.safetensors").state
        for key, value in given.items():
            torch.testing.assert_close(kept[key].float(), value.half().float(), rtol=0, atol=0)
    own = json.loads((built / "metrics.json").read_text())
    metrics = json.loads((tmp_path / "assets" / "metrics.json").read_text())
    golden, denoisers = metrics.pop("golden"), metrics.pop("denoisers")
    assert metrics == own
    assert {name: found["steps"] for name, found in denoisers.items()} == {"main": 10, "weak": 10}
    for name in bundle.NETWORKS:
        for model in ("main", "weak"):
            judged = golden[name][model]
            difference = judged["golden"] - judged["plain"]
            assert judged["against_plain"]["difference"] == pytest.approx(difference)
            assert judged["prompts"] == 6


def test_nothing_is_replaced_by_what_does_not_fit(
    built: Path, networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "assets"
    output.mkdir()
    (output / "kept").touch()
    other = network("prompt-attention", WIDTH // 2)
    checkpoint.write(networks / "prompt-attention.safetensors", other.state_dict(), other.config)
    assert assemble(built, networks, output) == 2
    assert f"texts ({TOKENS}, {WIDTH})" in capsys.readouterr().err.replace("\n", " ")
    alter(networks / "npnet.safetensors")
    assert assemble(built, networks, output) == 2
    (networks / "npnet.safetensors").unlink()
    assert assemble(built, networks, output) == 2
    assert [path.name for path in output.iterdir()] == ["kept"]


def test_too_large(
    built: Path, networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(bundle, "MOST_BYTES", 1000)
    assert assemble(built, networks, tmp_path / "assets") == 2
    assert "at most 1000 bytes" in capsys.readouterr().err
    assert not (tmp_path / "assets").exists()
