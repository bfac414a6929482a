"""`npnet-export verify --fixture`: engines against what the original implementation gave."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from npnet_export import ExportError, ExportSettings, ParityError, export
from npnet_export.cli import main
from npnet_export.fixture import Fixture, verify_fixture
from npnet_export.parity import TOLERANCES
from npnet_export.weights import WeightsRequest
from npnet_kernels import SVD, latent_to_matrix, svd
from npnet_runtime import EngineBundle, NPNet
from npnet_runtime.bundles.bundle import write_bundle
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import network_from_state
from npnet_runtime.weights import checkpoint
from support.networks import SMALL, SMALL_ATTENTION, noise_and_prompts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def original(fixture: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the original implementation gave, as a user would keep it."""
    path = tmp_path_factory.mktemp("fixture") / "original.safetensors"
    save_file(fixture, path)
    return path


@pytest.fixture
def small(small_network: NPNet) -> dict[str, Tensor]:
    """A fixture of the small network, with factors whose signs no rule gives."""
    noise, prompts = noise_and_prompts(SMALL, 2, seed=3)
    factors = svd(latent_to_matrix(noise))
    flips = torch.ones(SMALL.num_singular_values)
    flips[::3] = -1
    factors = factors._replace(u=factors.u * flips, vh=factors.vh * flips[:, None])
    golden = small_network(noise, prompts, factors)
    tensors = {"noise": noise, "prompt_embeds": prompts, "golden": golden}
    return tensors | dict(zip(("U", "s", "Vh"), factors, strict=True))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Tensor]], Path]:
    def save(tensors: dict[str, Tensor]) -> Path:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "fixture")
        return tmp_path / "fixture"

    return save


@pytest.mark.parametrize("engine", ["torch-fp32", "onnxruntime-fp32", "onnxruntime-fp16", "aoti-fp32"])
def test_original_implementation(
    engine: str, sdxl_bundles: dict[str, EngineBundle], sdxl_network: NPNet, original: Path
) -> None:
    bundle = sdxl_bundles[engine]
    fixture = Fixture.read(original, sdxl_network.config)
    found = verify_fixture(bundle, sdxl_network, CPU, fixture)
    found.require()
    judged, network, whole = found.rows
    assert judged.tolerance == TOLERANCES[bundle.manifest.precision][1]
    assert 0 < judged.value <= judged.tolerance
    assert 0 < network.value <= 5e-5
    # LAPACK builds differ in a few signs, which move single values by 3e-4; fp16 adds its own errors
    assert 0 < whole.value <= (1e-3 if bundle.manifest.precision == "fp32" else 2e-2)
    assert (whole.quantity, whole.tolerance) == ("golden, own SVD and signs as-is", None)


def test_signs_are_those_of_the_fixture(
    small_bundle: EngineBundle, small_network: NPNet, small: dict[str, Tensor], write: Callable
) -> None:
    found = verify_fixture(small_bundle, small_network, CPU, Fixture.read(write(small), SMALL))
    found.require()
    judged, _, whole = found.rows
    assert judged.value <= 5e-5
    assert whole.value > 10 * judged.value  # with the bundle's own signs it is another noise


def test_command(
    small_torch_bundle: EngineBundle, small: dict[str, Tensor], write: Callable, tmp_path: Path, capsys
) -> None:
    bundle = Path(shutil.copytree(small_torch_bundle.path, tmp_path / "bundle"))
    arguments = ["verify", str(bundle), "--device", "cpu", "--samples", "2", "--record"]
    assert main([*arguments, "--fixture", str(write(small))]) == 0
    assert "fixture fixture: golden: max_abs" in capsys.readouterr().out
    recorded = EngineBundle.open(bundle).manifest.parity
    assert [row.inputs for row in recorded] == 3 * ["2 noises, seeds 1000-1001"] + 3 * ["fixture fixture"]
    assert main(["inspect", str(bundle)]) == 0


def test_second_kind_of_network(tmp_path: Path, write: Callable) -> None:
    """No SVD, and so no factors."""
    state = random_state(SMALL_ATTENTION, 0)
    checkpoint.write(tmp_path / "weights", state, SMALL_ATTENTION)
    request = WeightsRequest(None, str(tmp_path / "weights"))
    bundle = export(ExportSettings(request, tmp_path / "bundle", "own", "torch", device="cpu"))
    network = network_from_state(SMALL_ATTENTION, state)
    noise, prompts = noise_and_prompts(SMALL_ATTENTION, 2)
    path = write({"noise": noise, "prompt_embeds": prompts, "golden": network(noise, prompts)})
    found = verify_fixture(bundle, network, CPU, Fixture.read(path, SMALL_ATTENTION))
    found.require()
    assert [row.quantity for row in found.rows] == ["golden", "float32 network"]


class TestDisagrees:
    def test_other_weights(
        self, small_torch_bundle: EngineBundle, small: dict[str, Tensor], write: Callable, capsys
    ) -> None:
        other = network_from_state(SMALL, random_state(SMALL, 5))
        factors = small["U"], small["s"], small["Vh"]
        small["golden"] = other(small["noise"], small["prompt_embeds"], SVD(*factors))
        arguments = ["verify", str(small_torch_bundle.path), "--device", "cpu", "--samples", "1"]
        assert main([*arguments, "--fixture", str(write(small))]) == 1
        said = capsys.readouterr().err
        assert "the engine does not agree with the fixture fixture: max_abs" in said
        assert "neither does float32 PyTorch" in said
        assert "made with other weights than the bundle" in said

    def test_wrong_engine(
        self, small_torch_bundle: EngineBundle, small: dict[str, Tensor], write: Callable, tmp_path: Path
    ) -> None:
        """The weights are the fixture's, the file of the engine holds others."""
        with write_bundle(tmp_path / "b") as (folder, seal):
            save_file(random_state(SMALL, 5), folder / "weights.safetensors")
            bundle = seal(replace(small_torch_bundle.manifest, files={}))
            network = network_from_state(SMALL, random_state(SMALL, 0))
            found = verify_fixture(bundle, network, CPU, Fixture.read(write(small), SMALL))
        with pytest.raises(ParityError, match="float32 PyTorch does, so that the engine is wrong"):
            found.require()


class TestBadFile:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda t: t.pop("golden"), "expected the tensors noise, .*; golden missing"),
            (lambda t: (t.pop("U"), t.pop("Vh")), "U, Vh missing"),
            (lambda t: t.update(noise=t["noise"][:, :3]), r"noise: expected .*\(batch, 4, 16, 16\)"),
            (lambda t: t.update(golden=t["golden"][:1]), r"golden: expected .*given .*\(1, 4, 16, 16\)"),
            (lambda t: t.update(noise=t["noise"][:0]), "noise: expected float32"),
            (lambda t: t.update(noise=torch.tensor(1.0)), r"noise: .*of the shape \(\)"),
            (lambda t: t.update(s=t["s"].double()), "s: expected float32.*given torch.float64"),
            (lambda t: t.update(s=t["s"] * torch.nan), "s: expected finite values"),
        ],
    )
    def test_refused(self, change: Callable, said: str, small: dict[str, Tensor], write: Callable) -> None:
        change(small)
        with pytest.raises(ExportError, match=rf"--fixture .*fixture: .*{said}"):
            Fixture.read(write(small), SMALL)

    @pytest.mark.parametrize("content", [None, b"", b"no safetensors", b"PK\x03\x04" + bytes(60)])
    def test_unreadable(
        self, content: bytes | None, small_torch_bundle: EngineBundle, tmp_path: Path, capsys
    ) -> None:
        if content is not None:
            (tmp_path / "f").write_bytes(content)
        assert main(["verify", str(small_torch_bundle.path), "--fixture", str(tmp_path / "f")]) == 1
        assert "f: expected a safetensors file (" in capsys.readouterr().err
