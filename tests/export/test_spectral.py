"""Bundles with a polynomial in place of the SVD."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from npnet_export import ExportError, ExportSettings, export
from npnet_export.cli import main
from npnet_export.weights import WeightsRequest, get_model
from npnet_kernels import latent_to_matrix, svd
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.errors import BundleError, InputError

EXPORT = ["--model", "shapes-npnet", "--engine", "torch", "--precision", "fp16", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    path = tmp_path_factory.mktemp("spectral") / "bundle"
    assert main([*EXPORT, "--spectral", "auto", "--output", str(path)]) == 0
    return EngineBundle.open(path)


def test_close_to_the_svd_on_noises_never_met(bundle: EngineBundle) -> None:
    network, *_ = WeightsRequest(get_model("shapes-npnet"), None).load()
    golden = GoldenNoise(bundle, device="cpu")
    noise = torch.randn(8, *network.config.latent_shape, generator=torch.Generator().manual_seed(77))
    with torch.inference_mode():
        expected = network.spectral_half(noise, svd(latent_to_matrix(noise)))
    error = (golden._pass.before_prompt(noise) - expected).square().mean((1, 2, 3)).sqrt()
    spectral = bundle.manifest.spectral
    assert spectral is not None
    assert error.max() < spectral.tolerance
    assert error.max() > spectral.worst / 3  # the error is there, and what the manifest says
    assert bundle.manifest.signs is None
    assert f"polynomial of degree {spectral.degree}" in golden.report()


@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_refuses_noise_it_was_not_fitted_to(bundle: EngineBundle, scale: float) -> None:
    golden = GoldenNoise(bundle, device="cpu")
    noise = scale * torch.randn(2, *bundle.manifest.config.latent_shape)
    with pytest.raises(InputError, match="--spectral exact"):
        golden._pass.before_prompt(noise)


def test_commands(bundle: EngineBundle, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(bundle.path)
    assert main(["verify", path, "--device", "cpu", "--samples", "2", "--quiet"]) == 0
    assert main(["inspect", path]) == 0
    assert "polynomial of" in capsys.readouterr().out
    assert main(["verify", path, "--device", "cpu", "--fixture", "any"]) == 1
    assert "--spectral exact" in capsys.readouterr().err
    assert "--spectral polynomial" in bundle.rebuild_command()


def test_fp32_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*EXPORT, "--precision", "fp32", "--output", str(tmp_path / "b"), "--spectral"]
    assert main([*arguments, "polynomial"]) == 1
    assert "smallest error" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_random_weights(export_small, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    settings: ExportSettings = replace(
        export_small(tmp_path / "b", engine="torch"), precision="fp16", spectral="polynomial"
    )
    with pytest.raises(ExportError, match="smallest error"):
        export(settings)
    told: list[str] = []
    kept = export(replace(settings, spectral="auto"), told.append)
    assert kept.manifest.spectral is None
    assert kept.manifest.signs == "canonical-v1"
    assert any("the SVD is kept" in line for line in told)


@pytest.mark.parametrize("change", [{"bound": "x"}, {"coefficients": []}, {"unknown": 1}, {"schatten8": [1]}])
def test_a_malformed_polynomial(bundle: EngineBundle, change: dict[str, object], tmp_path: Path) -> None:
    values = json.loads((bundle.path / "manifest.json").read_text())
    assert values["format_version"] == 4
    values["spectral"] |= change
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match="malformed"):
        EngineBundle.open(tmp_path)
