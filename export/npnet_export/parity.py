"""Does an engine agree with the float32 PyTorch network? Asked of every bundle before it is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from npnet_export.errors import ParityError
from npnet_kernels import SIGN_RULE, latent_to_matrix, svd
from npnet_kernels.linalg.choice import Solver
from npnet_kernels.reconstruction.reference import combine_reference
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.bundles.manifest import ParityRow
from npnet_runtime.bundles.spectral import SpectralPolynomial
from npnet_runtime.errors import InputError
from npnet_runtime.golden import GoldenNoise
from npnet_runtime.golden_statistics import golden_statistics
from npnet_runtime.hot_path.passes import SIGNS, polynomial_half
from npnet_runtime.inputs.texts import Prompt, random_inputs
from npnet_runtime.networks.any_size import AnySizeNet
from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.networks.npnet import NPNet
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.networks.registry import Network

# Largest error of golden noise against float32 PyTorch with the same factors, in units of the noise's
# standard deviation. fp32: two orders of summation differ by 1e-5 over the 157,696-wide text sum.
# fp16 and bf16 round a value near 1 by 2^-11 and 2^-8; the products behind it add a few such roundings.
TOLERANCES: dict[str, tuple[str, float]] = {
    "fp32": ("max_abs", 5e-5),
    "fp16": ("rms", 2e-3),
    "bf16": ("rms", 1e-2),
}
SAMPLES = 4


def difference(statistic: str, given: Tensor, expected: Tensor) -> float:
    """`max_abs` or `rms` of a difference; NaN if either holds one."""
    error = given.double() - expected.double()
    return float(error.abs().max() if statistic == "max_abs" else error.square().mean().sqrt())


def compare(
    bundle: EngineBundle, network: Network, device: torch.device, samples: int = SAMPLES
) -> tuple[ParityRow, ...]:
    """Run the bundle through `GoldenNoise` and compare it with the network on fresh noises.

    Args:
        bundle: sealed; loaded as a user would load it.
        network: float32 reference, on the CPU.
        device: where the engine runs.
        samples: noises, from the seeds 0, 1, ...

    Raises:
        ParityError: the engine gives values that are not finite.

    Returns:
        One row for golden noise, which has a tolerance, and rows that only inform: what another rule for
        the signs and another SVD routine would change.
    """
    manifest = bundle.manifest
    noise, prompt = random_inputs(network.config, range(samples))
    golden = GoldenNoise(bundle, device=device)
    try:
        given = golden(noise.to(device), prompt.to(device)).cpu()
    except InputError as error:  # the inputs are sound: the engine is not
        raise ParityError(f"the engine was not kept; try another --precision: {error}") from error
    expected = reference(network, noise, prompt, "lapack", manifest.signs, manifest.spectral)
    statistic, tolerance = TOLERANCES[manifest.precision]
    inputs = f"{samples} noises, seeds 0-{samples - 1}"
    rows = [ParityRow(inputs, "golden", statistic, difference(statistic, given, expected), tolerance)]
    if isinstance(network, AnySizeNet):
        return (*rows, *(_other_size(golden, network, size) for size in other_sizes(network.config)))
    if not isinstance(network.config, NPNetConfig):
        return tuple(rows)
    if manifest.spectral is not None:
        return (*rows, polynomial_row(manifest.spectral))
    # How much of golden noise is the choice of signs, and of the SVD routine: told, not judged.
    other = "as-is" if manifest.signs == SIGN_RULE else SIGN_RULE
    height, width = network.config.matrix_shape
    another: Solver = "gram" if height == width else "torch"  # `gram` takes square matrices
    variants: tuple[tuple[str, Solver, str | None], ...] = (
        (f"float32 network, signs {other}", "lapack", other),
        (f"float32 network, SVD by {another}", another, manifest.signs),
    )
    for quantity, solver, signs in variants:
        changed = reference(network, noise, prompt, solver, signs)
        rows.append(ParityRow(inputs, quantity, "max_abs", difference("max_abs", changed, expected), None))
    return tuple(rows)


def polynomial_row(spectral: SpectralPolynomial) -> ParityRow:
    """What the polynomial costs against the SVD; the row of golden noise has it on both sides."""
    first, last = spectral.test_seeds
    inputs = f"{last - first + 1} noises, seeds {first}-{last}"
    quantity = f"spectral half, polynomial of degree {spectral.degree} for the SVD, worst noise"
    return ParityRow(inputs, quantity, "rms", spectral.worst, spectral.tolerance)


def other_sizes(config: AnySizeConfig) -> list[tuple[int, int]]:
    """H and W of noises, not the engine's own: the smallest, one that is padded, and a wide one."""
    least, height, width = config.least_side, config.latent_height, config.latent_width
    odd = [max(least, min(config.most_side, side + change)) for side, change in ((height, -1), (width, 1))]
    wide = (max(least, height // 2), min(config.most_side, width + width // 2))
    sizes = dict.fromkeys(((least, least), (odd[0], odd[1]), wide))
    return [size for size in sizes if size != (height, width)]


def _other_size(golden: GoldenNoise, network: AnySizeNet, size: tuple[int, int]) -> ParityRow:
    manifest, device = golden.bundle.manifest, golden.device
    noise, prompt = random_inputs(network.config, range(1), size=size)
    given = golden(noise.to(device), prompt.to(device)).cpu()
    statistic, tolerance = TOLERANCES[manifest.precision]
    found = difference(statistic, given, reference(network, noise, prompt, "lapack", None))
    return ParityRow(f"noise of {size[0]} x {size[1]}, seed 0", "golden", statistic, found, tolerance)


def reference(
    network: Network,
    noise: Tensor,
    prompt: Prompt,
    solver: Solver,
    signs: str | None,
    spectral: SpectralPolynomial | None = None,
) -> Tensor:
    """Golden noise of the float32 network; of an NPNet by solver and signs, or by a polynomial."""
    embeds = prompt.embeds
    if not isinstance(embeds, Tensor):
        raise TypeError(f"expected padded embeddings, given {type(embeds).__name__}")
    with torch.inference_mode():
        if isinstance(network, AnySizeNet):
            return network(noise, embeds, **prompt.others)
        if spectral is not None and isinstance(network, NPNet):
            half = polynomial_half(noise, spectral)
            scale_shift, residual = network.prompt_half(noise, embeds)
            return combine_reference(half, noise, scale_shift, residual, network.text_weight, network.beta)
        if signs is None:
            return network(noise, embeds)
        return network(noise, embeds, svd(latent_to_matrix(noise), solver=solver, signs=SIGNS[signs]))


def statistics_of(network: Network, signs: str | None, samples: int = 8) -> dict[str, float]:
    """What golden noise of the float32 network looks like; see `npnet_runtime.golden_statistics`.

    Args:
        network: in float32.
        signs: the rule, of an NPNet.
        samples: noises, with a prompt each, from seeds 0, 1, ...
    """
    noise, prompt = random_inputs(network.config, range(samples))
    others = prompt.map(lambda tensor: tensor.roll(1, 0))
    golden, again = (reference(network, noise, text, "lapack", signs) for text in (prompt, others))
    return golden_statistics(golden, noise, again)
