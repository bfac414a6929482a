"""What a network was trained in front of: a latent space, and where it has one of its own, a text encoder."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from npnet_runtime.errors import BundleError


@dataclass(frozen=True)
class _Recorded:
    """Values of a manifest."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back, as JSON gives them."""
        values = asdict(self).items()
        return {name: [*value] if isinstance(value, tuple) else value for name, value in values}


@dataclass(frozen=True)
class LatentSpace(_Recorded):
    """What an autoencoder makes of images, as far as its configuration says.

    Models of one latent space give the same meaning to the same latents, whatever text they read and
    whatever removes the noise: FLUX.1, Chroma and Z-Image, or all that were made of SDXL.

    Args:
        autoencoder: its class in diffusers.
        channels: C of the latents.
        factor: pixels to a latent, along each side.
        scaling: what latents are multiplied by; None where each channel has its own.
        shift: what is subtracted before.
        means: of the channels, where each has its own.
        deviations: of the channels, likewise.
        weights: sha256 of weights that name the autoencoder among those of its configuration; None if they
            were not at hand.
    """

    autoencoder: str
    channels: int
    factor: int
    scaling: float | None
    shift: float
    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()
    weights: str | None = None

    def differences(self, other: LatentSpace) -> list[str]:
        """What differs from another in configuration: `name this, name that`; empty for one space."""
        own, given = asdict(self), asdict(other)
        # one class may be a copy of another for another pipeline
        names = [name for name in own if name not in ("autoencoder", "weights")]
        return [
            f"{name} {own[name]}, given {given[name]}" for name in names if not _alike(own[name], given[name])
        ]

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            BundleError: it is malformed.
        """
        found = _fields_of(cls, values, "latent_space")
        numbers = [found["factor"], found["channels"], found["shift"], *found["means"], *found["deviations"]]
        numbers += [] if found["scaling"] is None else [found["scaling"]]
        if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
            raise BundleError(f"latent_space: malformed, expected finite numbers, given {values}")
        return cls(**found | {"means": tuple(found["means"]), "deviations": tuple(found["deviations"])})


@dataclass(frozen=True)
class TextEncoderId(_Recorded):
    """The text encoder that a network reads, in place of the pipeline's own.

    Args:
        name: a registered name, `owner/repository`, or a folder.
        revision: commit on the hub; None of a folder.
        sha256: of its weights.
        tokens: that it reads at most.
        width: of its embeddings.
    """

    name: str
    revision: str | None
    sha256: str
    tokens: int
    width: int

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            BundleError: it is malformed.
        """
        found = _fields_of(cls, values, "text_encoder")
        texts = [found["name"], found["sha256"], found["revision"] or ""]
        sizes = [found["tokens"], found["width"]]
        if not all(isinstance(t, str) for t in texts) or not all(type(n) is int and n > 0 for n in sizes):
            raise BundleError(f"text_encoder: malformed, expected names and sizes, given {values}")
        return cls(**found)


KINDS: dict[str, Any] = {"latent_space": LatentSpace, "text_encoder": TextEncoderId}
"""What there is to say, by the name of a manifest's field and of a checkpoint's entry."""


def _fields_of(kind: Any, values: Any, name: str) -> dict[str, Any]:
    expected = {item.name for item in fields(kind)}
    if not isinstance(values, dict) or set(values) != expected:
        raise BundleError(f"{name}: malformed, expected {', '.join(sorted(expected))}, given {values}")
    return dict(values)


def _alike(own: Any, given: Any) -> bool:
    if isinstance(own, (tuple, list)) and isinstance(given, (tuple, list)):
        return len(own) == len(given) and all(map(_alike, own, given))
    if isinstance(own, float) and isinstance(given, float):
        return math.isclose(own, given, rel_tol=1e-4, abs_tol=1e-6)
    return bool(own == given)
