"""Printing what a bundle is, and whether its files are still those it was written with."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.bundles.manifest import Manifest
from npnet_runtime.errors import BundleError
from npnet_runtime.networks.any_size_config import AnySizeConfig


def inspect(bundle: EngineBundle, console: Console) -> bool:
    """Print a bundle.

    Returns:
        Whether every file of it is as its manifest says.
    """
    manifest = bundle.manifest
    config = manifest.config
    facts = {
        "model": manifest.model,
        "engine": f"{manifest.engine}, {manifest.precision}",
        "float32": ", ".join(manifest.float32_parts),
        "noise": f"(1-{manifest.max_batch}, {', '.join(map(str, config.latent_shape))})",
        "prompt": f"(batch, {config.text_tokens}, {config.text_dim})",
        **_bounds(manifest),
        "network": config.kind,
        **_mixing(manifest),
        "weights": ", ".join(f"{key} {value}" for key, value in manifest.weights.items()),
        "needs": ", ".join(f"{name} {condition}" for name, condition in manifest.requires.items()),
        "runs on": _runs_on(manifest),
        "options": " ".join(f"{name} {value}" for name, value in manifest.build_options.items()) or "none",
        "built by": f"npnet-runtime {manifest.package_version}, "
        + ", ".join(f"{key} {value}" for key, value in manifest.built_with.items()),
    }
    table = Table(title=str(bundle.path), show_header=False)
    for _ in range(2):
        table.add_column(overflow="fold")
    for key, value in facts.items():
        table.add_row(key, value)
    console.print(table)

    parity = Table("inputs", "quantity", "statistic", "value", "tolerance", title="parity when built")
    for row in manifest.parity:
        allowed = "(informs)" if row.tolerance is None else f"{row.tolerance:g}"
        parity.add_row(row.inputs, row.quantity, row.statistic, f"{row.value:.3g}", allowed)
    console.print(parity if manifest.unverified is None else f"parity: NOT checked: {manifest.unverified}")

    files, intact = Table("file", "MB", "sha256", "state", title="files"), True
    for name, entry in manifest.files.items():
        try:
            bundle.read(name)
            state = "intact"
        except BundleError as error:
            state, intact = str(error), False
        files.add_row(name, f"{entry.bytes / 1e6:.1f}", entry.sha256[:16] + "...", state)
    console.print(files)
    return intact


def _bounds(manifest: Manifest) -> dict[str, str]:
    config = manifest.config
    reads = {} if manifest.reads is None else {"reads": ", ".join(manifest.reads.values())}
    if manifest.text_encoder is not None:
        reads["text"] = f"by an encoder of its own, {manifest.text_encoder.name}"
    if (space := manifest.latent_space) is not None:
        reads["latent space"] = f"{space.autoencoder}, {space.channels} channels, 1:{space.factor}"
    if not isinstance(config, AnySizeConfig):
        return reads
    sides = f"sides of the noise {config.least_side} to {config.most_side}, tokens 1 to {config.most_tokens}"
    return {"bounds": sides, **reads}


def _mixing(manifest: Manifest) -> dict[str, str]:
    if manifest.text_weight is None:
        return {}
    weights = f"text {manifest.text_weight:.6g}, residual {manifest.residual_weight:.6g}"
    spectral = "SVD" if manifest.spectral is None else str(manifest.spectral)
    return {"signs": manifest.signs or "not needed", "spectral": spectral, "mixing": weights}


def _runs_on(manifest: Manifest) -> str:
    device = manifest.device or "cpu or cuda"
    capabilities = " or ".join(manifest.compute_capabilities)
    facts = [f"compute capability {capabilities}" if capabilities else "", *manifest.platform.values()]
    return ", ".join([device, *(fact for fact in facts if fact)])
