"""The manifest of an engine bundle: what the engine is, how it was made, what it agreed with.

`manifest.json` is read before any other file of the bundle, and names the sha256 of each.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from npnet_runtime.bundles.made_for import KINDS, LatentSpace, TextEncoderId
from npnet_runtime.bundles.spectral import SpectralPolynomial
from npnet_runtime.errors import BundleError, ConfigError
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.networks.registry import NetworkConfig, config_from_dict

FILENAME = "manifest.json"
FORMAT, FORMAT_VERSION = "npnet-engine-bundle", 1
# Only of bundles with a field that an earlier runtime does not know, which must refuse those.
NEWER_FIELDS = {"spectral": 2, "reads": 3, "statistics": 4, "latent_space": 5, "text_encoder": 5}
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
        statistic: `max_abs` or `rms` of the difference, or the `cosine` of the angle between both.
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
        signs: the rule for the signs of singular vectors (`npnet_kernels.svd`); like the next two of an
            NPNet, and None of another kind of network; the signs are None with a polynomial as well.
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
        spectral: what runs in place of the SVD, or None; not written if None.
        reads: what the network reads of a pipeline's prompt: by field of `npnet_runtime.inputs.texts.Prompt`,
            the name that the pipeline has for it; None for the first embeddings. Not written if None.
        statistics: of golden noise when the bundle was made; see `npnet_runtime.golden_statistics`. None of
            random weights, and of bundles of old; not written then.
        latent_space: of the model that it was trained in front of; None if unknown, and not written then.
        text_encoder: of its own, in place of the pipeline's; None, and not written, without one.
    """

    package_version: str
    model: str
    config: NetworkConfig
    weights: dict[str, Any]
    engine: str
    precision: str
    float32_parts: tuple[str, ...]
    max_batch: int
    signs: str | None
    text_weight: float | None
    residual_weight: float | None
    requires: dict[str, str]
    device: str | None
    compute_capabilities: tuple[str, ...]
    platform: dict[str, str]
    build_options: dict[str, Any]
    files: dict[str, BundleFile]
    built_with: dict[str, Any]
    parity: tuple[ParityRow, ...]
    unverified: str | None
    spectral: SpectralPolynomial | None = None
    reads: dict[str, str] | None = None
    statistics: dict[str, float] | None = None
    latent_space: LatentSpace | None = None
    text_encoder: TextEncoderId | None = None

    def to_json(self) -> str:
        """Text of `manifest.json`; the same manifest gives the same text."""
        values = {
            "format": FORMAT,
            "format_version": _version(asdict(self)),
            **asdict(self),
            "config": self.config.to_dict(),
        }
        for name in NEWER_FIELDS:
            if values[name] is None:
                del values[name]
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
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(
                f"{path} is no engine bundle{_hint(path)}: expected a readable {FILENAME} ({error}); "
                f"make one with: npnet-export --model sdxl --output {path}"
            ) from error
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise BundleError(f"{file}: expected the format {FORMAT!r}, given something else")
        version = values.pop("format_version", None)
        wanted = _version(values)
        if type(version) is not int or version != wanted:
            raise BundleError(
                f"{file}: expected format version {wanted}, given {version}; update with "
                f"pip install -U npnet-runtime, or write the bundle again with npnet-export --force"
            )
        return cls._from_values(file, values)

    @classmethod
    def _from_values(cls, file: Path, values: dict[str, Any]) -> Self:
        values = {**dict.fromkeys(NEWER_FIELDS), **values}
        expected = {item.name for item in fields(cls)}
        if set(values) != expected:
            missing, unknown = sorted(expected - set(values)), sorted(set(values) - expected)
            raise BundleError(f"{file}: missing fields {missing}, unknown fields {unknown}")
        try:
            manifest = cls(
                **{
                    **values,
                    "config": config_from_dict(values["config"]),
                    "float32_parts": tuple(values["float32_parts"]),
                    "compute_capabilities": tuple(values["compute_capabilities"]),
                    "files": {name: BundleFile(**entry) for name, entry in values["files"].items()},
                    "parity": tuple(ParityRow(**row) for row in values["parity"]),
                    "spectral": SpectralPolynomial.from_dict(values["spectral"])
                    if values["spectral"] is not None
                    else None,
                    **{
                        name: None if values[name] is None else kind.from_dict(values[name])
                        for name, kind in KINDS.items()
                    },
                }
            )
        except (TypeError, AttributeError, ConfigError, BundleError) as error:
            raise BundleError(f"{file}: malformed ({error})") from error
        for part, holder in (("", manifest), *(("files: ", f) for f in manifest.files.values())):
            _check_types(file, part, holder)
        for row in manifest.parity:
            _check_types(file, "parity: ", row)
        manifest._check_values(file)
        return manifest

    def _mixing_problems(self) -> dict[str, tuple[str, bool]]:
        numbers = {"text_weight": self.text_weight, "residual_weight": self.residual_weight}
        if not isinstance(self.config, NPNetConfig):
            absent = {**numbers, "signs": self.signs, "spectral": self.spectral}
            return {n: ("null", v is not None) for n, v in absent.items()}
        found = {n: ("a finite number", v is None or not math.isfinite(v)) for n, v in numbers.items()}
        if self.spectral is not None:
            return {**found, "signs": ("null beside a polynomial", self.signs is not None)}
        return {**found, "signs": ("a rule", self.signs is None)}

    def _check_values(self, file: Path) -> None:
        problems = {
            f"precision: expected one of {', '.join(PRECISIONS)}": self.precision not in PRECISIONS,
            "max_batch: expected 1 or more": self.max_batch < 1,
            **{
                f"{name}: expected {expected}, as the network is of kind {self.config.kind}": wrong
                for name, (expected, wrong) in self._mixing_problems().items()
            },
            "files: expected at least one": not self.files,
            # a name must not lead out of the bundle
            "files: expected plain file names": any(Path(name).name != name for name in self.files),
            "requires: expected conditions such as >=1.2 or ==1.2.3": any(
                re.fullmatch(r"(>=|==|~=)\d[\w.+]*", str(condition)) is None
                for condition in self.requires.values()
            ),
            "device: expected cpu, cuda or null": self.device not in (None, "cpu", "cuda"),
            "compute_capabilities: expected such as 8.9 or 8.0+": any(
                re.fullmatch(r"\d+\.\d\+?", capability) is None for capability in self.compute_capabilities
            ),
            "reads: expected names": self.reads is not None
            and not (self.reads and all(isinstance(name, str) for name in self.reads.values())),
            "statistics: expected finite numbers": self.statistics is not None
            and not all(
                isinstance(value, int | float) and math.isfinite(value) for value in self.statistics.values()
            ),
            "platform: expected text": not all(isinstance(value, str) for value in self.platform.values()),
        }
        for problem, present in problems.items():
            if present:
                raise BundleError(f"{file}: malformed ({problem})")


def _hint(path: Path) -> str:
    if not any((path / name).is_file() for name in ("pytorch_lora_weights.safetensors", "best.safetensors")):
        return ""
    return (
        f", but trained weights: export them with npnet-export --weights; a LoRA of golden noise is "
        f"npnet_runtime.GoldenLora({str(path)!r})"
    )


def _version(values: dict[str, Any]) -> int:
    """The oldest format that has what a manifest says."""
    return max([FORMAT_VERSION, *(v for name, v in NEWER_FIELDS.items() if values.get(name) is not None)])


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "float | None": (float, int, type(None)),
    "str | None": (str, type(None)),
    "dict[str, str] | None": (dict, type(None)),
    "dict[str, float] | None": (dict, type(None)),
    "dict": (dict,),
    "tuple": (tuple,),
}


def _check_types(file: Path, part: str, holder: Any) -> None:
    """Compare each field of a dataclass with its annotation, as far as JSON can get it wrong."""
    for item in fields(holder):
        annotation = str(item.type)
        kinds = _KINDS.get(annotation) or _KINDS.get(annotation.partition("[")[0])
        value = getattr(holder, item.name)
        entries = value if annotation == "tuple[str, ...]" else ()
        wrong = kinds is not None and (not isinstance(value, kinds) or isinstance(value, bool))
        if wrong or not all(isinstance(entry, str) for entry in entries):
            raise BundleError(
                f"{file}: malformed ({part}{item.name}: expected {annotation}, given {value!r})"
            )
