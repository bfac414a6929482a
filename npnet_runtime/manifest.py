"""The manifest of an engine bundle: what the engine is, how it was made, what it agreed with.

`manifest.json` is read before any other file of the bundle, and names the sha256 of each.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from npnet_runtime.config import NPNetConfig
from npnet_runtime.errors import BundleError, ConfigError

FILENAME = "manifest.json"
FORMAT, FORMAT_VERSION = "npnet-engine-bundle", 1
PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class BundleFile:
    """One file of the bundle, by its size in bytes and its sha256."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ParityRow:
    """One line of the comparison with the float32 PyTorch network, made when the bundle was.

    Args:
        inputs: what both were given.
        quantity: the tensor compared.
        statistic: `max_abs` or `rms` of the difference.
        value: what was found.
        tolerance: what was allowed; None where the row only informs.
    """

    inputs: str
    quantity: str
    statistic: str
    value: float
    tolerance: float | None


@dataclass(frozen=True)
class Manifest:
    """Everything a runtime must know before it loads an engine.

    Args:
        package_version: of `npnet-runtime`, which wrote the bundle.
        model: a registered model's name, or the user's own.
        config: shapes of noise, text and network.
        weights: where the weights came from: `source`, and `sha256` or `random_seed`.
        engine: kind of engine, a back end's name.
        precision: of the matrix products; one of `PRECISIONS`.
        float32_parts: what is computed in float32 whatever the precision.
        max_batch: largest batch of one run; more is run in chunks.
        signs: the rule for the signs of singular vectors (`npnet_kernels.svd`).
        text_weight: 2 sigmoid(alpha) - 1.
        residual_weight: beta.
        requires: package -> version condition (`>=1.2`, `==1.2.3` or `~=1.2`) on the machine that loads it.
        device: `cpu` or `cuda` where the engine's code runs on that kind only, else None.
        compute_capabilities: of the GPUs the engine runs on: `8.9`, or `8.0+` for that and all later
            ones. Empty for any.
        platform: what else the engine's code is bound to, keys of `backends.machine.PLATFORM`:
            `system`, `machine`, `cpu_features`. Empty for any.
        build_options: options of `npnet-export` beyond those every engine has.
        files: by name relative to the bundle.
        built_with: versions, operating system and GPU of the machine that wrote it.
        parity: comparison with the float32 PyTorch network; empty if it was not run.
        unverified: why it was not run, or None.
    """

    package_version: str
    model: str
    config: NPNetConfig
    weights: dict[str, Any]
    engine: str
    precision: str
    float32_parts: tuple[str, ...]
    max_batch: int
    signs: str
    text_weight: float
    residual_weight: float
    requires: dict[str, str]
    device: str | None
    compute_capabilities: tuple[str, ...]
    platform: dict[str, str]
    build_options: dict[str, Any]
    files: dict[str, BundleFile]
    built_with: dict[str, Any]
    parity: tuple[ParityRow, ...]
    unverified: str | None

    def to_json(self) -> str:
        """Text of `manifest.json`; the same manifest gives the same text."""
        values = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest.

        Args:
            path: of the bundle's folder.

        Raises:
            BundleError: missing, not JSON, of another or a newer format, or incomplete.
        """
        file = path / FILENAME
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{path} is no engine bundle: expected a readable {FILENAME} ({error}); "
                f"make one with: npnet-export --model sdxl --output {path}"
            ) from error
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise BundleError(f"{file}: expected the format {FORMAT!r}, given something else")
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{file}: expected format version {FORMAT_VERSION}, given {version}; update with "
                f"pip install -U npnet-runtime, or write the bundle again with npnet-export --force"
            )
        return cls._from_values(file, values)

    @classmethod
    def _from_values(cls, file: Path, values: dict[str, Any]) -> Self:
        expected = {item.name for item in fields(cls)}
        if set(values) != expected:
            missing, unknown = sorted(expected - set(values)), sorted(set(values) - expected)
            raise BundleError(f"{file}: missing fields {missing}, unknown fields {unknown}")
        try:
            manifest = cls(
                **{
                    **values,
                    "config": NPNetConfig.from_dict(values["config"]),
                    "float32_parts": tuple(values["float32_parts"]),
                    "compute_capabilities": tuple(values["compute_capabilities"]),
                    "files": {name: BundleFile(**entry) for name, entry in values["files"].items()},
                    "parity": tuple(ParityRow(**row) for row in values["parity"]),
                }
            )
        except (TypeError, AttributeError, ConfigError) as error:
            raise BundleError(f"{file}: malformed ({error})") from error
        for name in manifest.files:
            # A name must not lead out of the bundle.
            if Path(name).name != name:
                raise BundleError(f"{file}: expected plain file names, given {name!r}")
        if (
            manifest.precision not in PRECISIONS
            or type(manifest.max_batch) is not int
            or manifest.max_batch < 1
        ):
            raise BundleError(
                f"{file}: malformed (precision={manifest.precision!r}, max_batch={manifest.max_batch!r})"
            )
        return manifest
