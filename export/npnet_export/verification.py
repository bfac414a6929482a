"""`npnet-export verify`: golden noise of a bundle against float32 PyTorch, on noises it never met."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from npnet_export.errors import ExportError, ParityError
from npnet_export.parity import TOLERANCES, reference
from npnet_export.weights import WeightsRequest, all_models
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.bundles.manifest import FILENAME, ParityRow
from npnet_runtime.errors import InputError
from npnet_runtime.files import atomic_file
from npnet_runtime.golden import GoldenNoise
from npnet_runtime.inputs.texts import Prompt, random_inputs
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import Network, network_from_state

FIRST_SEED = 1000  # an export compares the seeds from 0 on


@dataclass(frozen=True)
class Sample:
    """One noise: how far its golden noise is from the reference, NaN where it is not finite."""

    seed: int
    max_abs: float
    mean_square: float
    cosine: float

    @property
    def finite(self) -> bool:
        """Whether the engine gave numbers."""
        return self.max_abs == self.max_abs


@dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Args:
        samples: one of each noise, by seed.
        statistic: `max_abs` or `rms`, which the precision is judged by.
        tolerance: largest value of it.
    """

    samples: tuple[Sample, ...]
    statistic: str
    tolerance: float

    @property
    def rows(self) -> tuple[ParityRow, ...]:
        """For the manifest: maximum and RMS over all samples, and the smallest cosine."""
        inputs = f"{len(self.samples)} noises, seeds {self.samples[0].seed}-{self.samples[-1].seed}"
        # Python's max and min may pass over a NaN
        whole = torch.tensor([[s.max_abs, s.mean_square, s.cosine] for s in self.samples])
        values = {
            "max_abs": float(whole[:, 0].max()),
            "rms": float(whole[:, 1].mean().sqrt()),
            "cosine": float(whole[:, 2].min()),
        }
        return tuple(
            ParityRow(inputs, "golden", name, value, self.tolerance if name == self.statistic else None)
            for name, value in values.items()
        )

    @property
    def worst(self) -> Sample:
        """The sample with the largest error; one that is not finite before any other."""
        return max(self.samples, key=lambda sample: (not sample.finite, sample.max_abs))

    def require(self) -> None:
        """Raise unless the engine agrees.

        Raises:
            ParityError: it does not.
        """
        judged = next(row for row in self.rows if row.tolerance is not None)
        if not judged.value <= self.tolerance:  # `not <=` rather than `>`: NaN must fail
            raise ParityError(
                f"the engine does not agree with float32 PyTorch: {judged.statistic} {judged.value:.3g}, "
                f"tolerance {self.tolerance:g}, {judged.inputs}; build it again, or in a higher --precision"
            )

    def __str__(self) -> str:
        lines = [described(row) for row in self.rows]
        lines.append(f"worst: seed {self.worst.seed}, max_abs {self.worst.max_abs:.3g}")
        broken = [str(sample.seed) for sample in self.samples if not sample.finite]
        if broken:
            lines.append(f"NaN or infinity: seeds {', '.join(broken)}")
        return "\n".join(lines)


def verify(
    bundle: EngineBundle, network: Network, device: torch.device, samples: int, first_seed: int = FIRST_SEED
) -> Verification:
    """Compare a bundle, loaded as a user would load it, with the network.

    Args:
        bundle: to verify.
        network: float32, on the CPU; see `reference_network`.
        device: where the engine runs.
        samples: number of noises.
        first_seed: of the first noise.

    Raises:
        BackendError: the engine cannot run on the device.
    """
    golden = GoldenNoise(bundle, device=device)
    found = []
    for seed in range(first_seed, first_seed + samples):
        noise, prompt = random_inputs(network.config, [seed])
        manifest = bundle.manifest
        expected = reference(network, noise, prompt, "lapack", manifest.signs, manifest.spectral)
        found.append(_compare(seed, golden_or_nan(golden, noise, prompt), expected))
    return Verification(tuple(found), *TOLERANCES[bundle.manifest.precision])


def reference_network(
    bundle: EngineBundle, source: str | None, random_seed: int | None, *, offline: bool = False
) -> Network:
    """The float32 network with the weights that a bundle was made from.

    Args:
        bundle: whose manifest names the weights.
        source: a path or hub id; None for what the manifest names.
        random_seed: of random weights; None for what the manifest names.
        offline: use the hub's cache only.

    Raises:
        ExportError: these are other weights.
        CheckpointError, DownloadError: there are none.
    """
    manifest = bundle.manifest
    wanted = manifest.weights
    if source is None and random_seed is None:
        source, random_seed = wanted.get("source"), wanted.get("random_seed")
    if random_seed is not None:
        network = network_from_state(manifest.config, random_state(manifest.config, random_seed))
        given: object = random_seed
    else:
        request = WeightsRequest(all_models().get(manifest.model), source, offline=offline)
        network, description, _ = request.load()
        given = description["sha256"]
    key = "sha256" if random_seed is None else "random_seed"
    if wanted.get(key) != given or network.config != manifest.config:
        raise ExportError(
            f"{bundle.path}: expected the weights it was made from ({_described(wanted)}), given {key} "
            f"{given}; name them with --weights or --random-weights"
        )
    return network


def record(bundle: EngineBundle, rows: tuple[ParityRow, ...]) -> None:
    """Replace what the manifest says of parity by what was found, the file whole or not at all."""
    manifest = replace(bundle.manifest, parity=rows, unverified=None)
    with atomic_file(bundle.path / FILENAME) as temporary:
        temporary.write_text(manifest.to_json(), encoding="utf-8")


def described(row: ParityRow) -> str:
    """What was compared, and how far it is off."""
    tolerance = "" if row.tolerance is None else f" (tolerance {row.tolerance:g})"
    return f"{row.quantity}: {row.statistic} {row.value:.6g}{tolerance}"


def golden_or_nan(golden: GoldenNoise, noise: Tensor, prompt: Prompt) -> Tensor:
    """Golden noise of sound inputs, on the CPU; all NaN where the engine gives NaN or infinity."""
    try:
        return golden(noise.to(golden.device), prompt.to(golden.device)).cpu()
    except InputError:  # the inputs are sound: the engine gave NaN or infinity
        return torch.full_like(noise, torch.nan)


def _compare(seed: int, given: Tensor, expected: Tensor) -> Sample:
    given, expected = given.double().flatten(), expected.double().flatten()
    error = given - expected
    cosine = F.cosine_similarity(given, expected, dim=0)
    return Sample(seed, float(error.abs().max()), float(error.square().mean()), float(cosine))


def _described(weights: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in weights.items())
