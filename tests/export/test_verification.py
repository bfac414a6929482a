"""`npnet-export verify`: what it prints, what it refuses, what it records."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from npnet_export import ExportError, ExportSettings, ParityError, export
from npnet_export.cli import main
from npnet_export.parity import TOLERANCES
from npnet_export.verification import Sample, Verification, reference_network, verify
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle, GoldenNoise, NPNet
from npnet_runtime.errors import CheckpointError
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.weights import checkpoint
from npnet_runtime.weights.models import MODELS
from support.networks import SMALL

Settings = Callable[..., ExportSettings]
CPU = torch.device("cpu")


@pytest.fixture
def copied(small_bundles: dict[str, EngineBundle], tmp_path: Path) -> EngineBundle:
    return EngineBundle.open(shutil.copytree(small_bundles["torch"].path, tmp_path / "bundle"))


def test_every_engine_agrees(small_bundle: EngineBundle, small_network: NPNet) -> None:
    found = verify(small_bundle, small_network, CPU, samples=3, first_seed=7)
    found.require()
    assert [sample.seed for sample in found.samples] == [7, 8, 9]
    maximum, rms, cosine = (row.value for row in found.rows)
    assert 0 <= rms <= maximum <= TOLERANCES["fp32"][1]
    assert cosine == pytest.approx(1)
    assert found.worst.max_abs == maximum


def test_prints_the_table(copied: EngineBundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(copied.path), "--samples", "3", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for line in (
        r"max_abs \S+ \(tolerance 5e-05\)",
        r"rms \S+",
        r"cosine \S+",
        r"worst: seed 100[012], max_abs",
    ):
        assert re.search(line, printed), printed
    assert EngineBundle.open(copied.path) == copied


def test_records(tmp_path: Path, export_small: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = export(export_small(tmp_path / "bundle", verify=False))
    assert bundle.manifest.parity == ()
    assert (
        "parity: NOT checked when built: --no-verify (left out on request)"
        in GoldenNoise(bundle, device="cpu").report()
    )
    assert main(["verify", str(bundle.path), "--record", "--samples", "2", "--device", "cpu"]) == 0
    recorded = EngineBundle.open(bundle.path)
    assert recorded.manifest.unverified is None
    assert [row.statistic for row in recorded.manifest.parity] == ["max_abs", "rms", "cosine"]
    assert "NOT checked" not in GoldenNoise(recorded, device="cpu").report()
    assert replace(recorded.manifest, parity=(), unverified=bundle.manifest.unverified) == bundle.manifest


def test_disagrees(
    copied: EngineBundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TOLERANCES, "fp32", ("max_abs", -1.0))  # on some CPUs they agree to the last bit
    assert main(["verify", str(copied.path), "--record", "--samples", "2", "--device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert "max_abs" in printed.out
    assert "does not agree with float32 PyTorch: max_abs" in printed.err
    assert EngineBundle.open(copied.path) == copied


def test_names_the_noises_that_are_not_finite(
    tmp_path: Path, export_small: Settings, small_state: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that overflow float16, built without a check."""
    name = "spectral_head.f_mlp.2.weight"
    checkpoint.write(tmp_path / "huge", {**small_state, name: small_state[name] * 1e6}, SMALL)
    settings = export_small(tmp_path / "bundle", precision="fp16", verify=False, allow_collapse=True)
    export(replace(settings, weights=WeightsRequest(None, str(tmp_path / "huge"))))
    assert main(["verify", str(tmp_path / "bundle"), "--samples", "2", "--device", "cpu"]) == 1
    assert "NaN or infinity: seeds 1000, 1001" in capsys.readouterr().out


def test_nan_never_passes() -> None:
    good, bad = Sample(0, 1e-7, 1e-14, 1.0), Sample(1, float("nan"), float("nan"), float("nan"))
    for samples in ((good, bad), (bad, good)):
        found = Verification(samples, "max_abs", 5e-5)
        assert found.worst is bad
        with pytest.raises(ParityError):
            found.require()


class TestWeights:
    def test_are_those_of_the_manifest(self, copied: EngineBundle, small_state: dict) -> None:
        network = reference_network(copied, None, None)
        assert all(torch.equal(value, small_state[name]) for name, value in network.state_dict().items())

    def test_others_are_refused(self, copied: EngineBundle, tmp_path: Path) -> None:
        checkpoint.write(tmp_path / "other", random_state(SMALL, 5), SMALL)
        with pytest.raises(ExportError, match=r"expected the weights it was made from.*given sha256"):
            reference_network(copied, str(tmp_path / "other"), None)
        with pytest.raises(ExportError, match="given random_seed 0"):
            reference_network(copied, None, 0)

    def test_moved(self, copied: EngineBundle, small_checkpoint: Path, tmp_path: Path) -> None:
        weights = {**copied.manifest.weights, "source": str(tmp_path / "gone.safetensors")}
        moved = replace(copied, manifest=replace(copied.manifest, weights=weights))
        with pytest.raises(CheckpointError, match="gone"):
            reference_network(moved, None, None)
        reference_network(moved, str(small_checkpoint), None)

    def test_from_a_seed(
        self, tmp_path: Path, export_small: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(MODELS, "tiny", replace(MODELS["sdxl"], name="tiny", config=SMALL))
        settings = replace(export_small(tmp_path / "b"), weights=WeightsRequest(MODELS["tiny"], None, 3))
        bundle = export(replace(settings, name="tiny"))
        verify(bundle, reference_network(bundle, None, None), CPU, 1).require()
        with pytest.raises(ExportError, match="random_seed 3.*given random_seed 4"):
            reference_network(bundle, None, 4)
