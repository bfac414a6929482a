"""`npnet-export verify --fixture`: an engine against golden noise that the original implementation made.

Golden noise depends on the signs of the singular vectors, and those on the SVD routine: not even the original
implementation gives the same values on two machines. A fixture therefore holds the factors that were found
when it was made, and an engine is judged on all it does with these. What
its own SVD and signs change is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from npnet_export.errors import ExportError, ParityError
from npnet_export.parity import TOLERANCES, difference
from npnet_export.verification import described, golden_or_nan
from npnet_kernels import SVD
from npnet_runtime.backends import load_backend
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.bundles.manifest import ParityRow
from npnet_runtime.golden import GoldenNoise
from npnet_runtime.hot_path.passes import NPNetPass, make_pass
from npnet_runtime.inputs.texts import Prompt
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.networks.registry import Network, NetworkConfig

FACTORS = ("U", "s", "Vh")


@dataclass(frozen=True)
class Fixture:
    """What the original implementation was given, and what it gave.

    Args:
        name: of the file.
        noise: (B, C, H, W) float32.
        prompt_embeds: (B, tokens, width) float32.
        factors: of the noise's matrix; None for a network without an SVD.
        golden: (B, C, H, W) float32.
    """

    name: str
    noise: Tensor
    prompt_embeds: Tensor
    factors: SVD | None
    golden: Tensor

    @classmethod
    def read(cls, path: Path, config: NetworkConfig) -> Fixture:
        """Read a safetensors file with `noise`, `prompt_embeds`, `golden` and, for an NPNet, `U`, `s`, `Vh`.

        Args:
            path: of the file; other tensors in it are passed over.
            config: of the network that it was made with.

        Raises:
            ExportError: it cannot be read, or a tensor is missing, of another shape or dtype, or not finite.
        """
        wanted: dict[str, tuple[int, ...]] = {
            "noise": config.latent_shape,
            "prompt_embeds": config.text_shape,
            "golden": config.latent_shape,
        }
        if isinstance(config, NPNetConfig):
            (rows, columns), k = config.matrix_shape, config.num_singular_values
            wanted |= dict(zip(FACTORS, ((rows, k), (k,), (k, columns)), strict=True))
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ExportError(f"--fixture {path}: expected a safetensors file ({error})") from error
        missing = [name for name in wanted if name not in tensors]
        if missing:
            raise ExportError(
                f"--fixture {path}: expected the tensors {', '.join(wanted)}; {', '.join(missing)} missing"
            )
        batch = len(tensors["noise"]) if tensors["noise"].dim() else 0
        for name, shape in wanted.items():
            _check(path, name, tensors[name], (batch, *shape))
        factors = SVD(*(tensors[name] for name in FACTORS)) if isinstance(config, NPNetConfig) else None
        return cls(path.name, tensors["noise"], tensors["prompt_embeds"], factors, tensors["golden"])


def _check(path: Path, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape or not shape[0] or tensor.dtype != torch.float32:
        wanted = ", ".join(map(str, shape[1:]))
        raise ExportError(
            f"--fixture {path}: {name}: expected float32 of the shape (batch, {wanted}), the batch of noise; "
            f"given {tensor.dtype} of the shape {tuple(tensor.shape)}; is it a fixture of another model?"
        )
    if not tensor.isfinite().all():
        raise ExportError(f"--fixture {path}: {name}: expected finite values, given NaN or infinity")


@dataclass(frozen=True)
class FixtureResult:
    """How far an engine is from a fixture.

    Args:
        rows: for the manifest. The first one is judged.
    """

    rows: tuple[ParityRow, ...]

    def require(self) -> None:
        """Raise unless the engine agrees.

        Raises:
            ParityError: it does not.
        """
        engine, network = self.rows[:2]
        tolerance = engine.tolerance or 0.0
        if engine.value <= tolerance:  # never for NaN
            return
        cause = (
            "float32 PyTorch does, so that the engine is wrong: build it again, or in a higher --precision"
            if network.value <= TOLERANCES["fp32"][1]
            else f"neither does float32 PyTorch (max_abs {network.value:.3g}), so that the fixture was made "
            f"with other weights than the bundle"
        )
        raise ParityError(
            f"the engine does not agree with the {engine.inputs}: {engine.statistic} {engine.value:.3g}, "
            f"tolerance {tolerance:g}; {cause}"
        )

    def __str__(self) -> str:
        return "\n".join(f"{row.inputs}: {described(row)}" for row in self.rows)


def verify_fixture(
    bundle: EngineBundle, network: Network, device: torch.device, fixture: Fixture
) -> FixtureResult:
    """Compare a bundle with a fixture.

    Args:
        bundle: to verify.
        network: float32, on the CPU; tells wrong weights from a wrong engine.
        device: where the engine runs.
        fixture: made with the weights of the bundle.

    Raises:
        BackendError: the engine cannot run on the device.
    """
    statistic, tolerance = TOLERANCES[bundle.manifest.precision]
    factors = () if fixture.factors is None else (fixture.factors,)
    with torch.inference_mode():
        exact = network(fixture.noise, fixture.prompt_embeds, *factors)
    found: list[tuple[str, str, Tensor, float | None]] = [
        (statistic, "golden", _with_its_factors(bundle, device, fixture), tolerance),
        ("max_abs", "float32 network", exact, None),
    ]
    if factors:
        whole = golden_or_nan(
            GoldenNoise(bundle, device=device), fixture.noise, Prompt(fixture.prompt_embeds)
        )
        quantity = f"golden, own SVD and signs {bundle.manifest.signs}"
        found.append(("max_abs", quantity, whole, None))
    return FixtureResult(
        tuple(
            ParityRow(
                f"fixture {fixture.name}", quantity, name, difference(name, given, fixture.golden), allowed
            )
            for name, quantity, given, allowed in found
        )
    )


def _with_its_factors(bundle: EngineBundle, device: torch.device, fixture: Fixture) -> Tensor:
    backend, _ = load_backend(bundle, device)
    steps = make_pass(backend, bundle.manifest, "auto")
    noise, prompt_embeds = fixture.noise.to(device), fixture.prompt_embeds.to(device)
    with torch.inference_mode():
        early = None
        if isinstance(steps, NPNetPass) and fixture.factors is not None:
            early = steps.spectral_half(noise, SVD(*(factor.to(device) for factor in fixture.factors)))
        golden, _ = steps.finish(early, noise, *steps.with_prompt(noise, prompt_embeds))
        return golden.cpu()
