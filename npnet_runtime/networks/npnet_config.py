"""The shape of an NPNet: one frozen dataclass that every other module reads."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

from npnet_runtime.errors import ConfigError


def require_positive_ints(config: object, *skip: str) -> None:
    """Refuse a field that is not a positive integer, or a tuple of them.

    Raises:
        ConfigError: there is one.
    """
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        values = value if isinstance(value, tuple) else (value,)
        if item.name not in skip and not all(type(v) is int and v > 0 for v in values):
            raise ConfigError(
                f"{type(config).__name__}.{item.name}: expected positive integers, given {value!r}"
            )


def fields_from_dict(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a configuration from plain values, without the `kind` that names a kind of network.

    Raises:
        ConfigError: a field is missing or unknown, or it is of another kind.
    """
    kind: str | None = getattr(cls, "kind", None)
    known = {item.name for item in fields(cls)} | ({"kind"} if kind else set())
    if not isinstance(values, dict) or set(values) != known:
        given = sorted(values) if isinstance(values, dict) else values
        raise ConfigError(f"{cls.__name__}: expected the fields {sorted(known)}, given {given}")
    if kind and values["kind"] != kind:
        raise ConfigError(f"{cls.__name__}: expected the kind {kind!r}, given {values['kind']!r}")
    return {n: tuple(v) if isinstance(v, list) else v for n, v in values.items() if n != "kind"}


@dataclass(frozen=True)
class SwinConfig:
    """Size of the Swin Transformer in the residual branch. The default is Swin-Tiny.

    Args:
        image_size: side of the square image it reads, in pixels.
        patch_size: side of a patch, in pixels.
        window_size: side of an attention window, in tokens.
        embed_dim: channels of the first stage; doubled by each later stage.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        mlp_ratio: hidden width of a block's MLP over its channels.

    Raises:
        ConfigError: a field is not positive, or the windows do not tile a stage.
    """

    image_size: int = 224
    patch_size: int = 4
    window_size: int = 7
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        require_positive_ints(self)
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise ConfigError(
                f"SwinConfig: expected as many num_heads as depths (at least one), "
                f"given depths={self.depths}, num_heads={self.num_heads}"
            )
        reduction = self.patch_size * 2 ** (len(self.depths) - 1)
        if self.image_size % reduction:
            raise ConfigError(
                f"SwinConfig.image_size: expected a multiple of {reduction} "
                f"(patch_size x 2^(stages-1)), given {self.image_size}"
            )
        for stage, heads in enumerate(self.num_heads):
            side, dim = self.resolution(stage), self.dim(stage)
            if side > self.window_size and side % self.window_size:
                raise ConfigError(
                    f"SwinConfig: stage {stage} has {side}x{side} tokens, which windows of "
                    f"{self.window_size} do not tile; change image_size or window_size"
                )
            if dim % heads:
                raise ConfigError(f"SwinConfig: stage {stage} has {dim} channels, not a multiple of {heads}")

    def resolution(self, stage: int) -> int:
        """Tokens along a side of the given stage."""
        return self.image_size // self.patch_size // 2**stage

    def dim(self, stage: int) -> int:
        """Channels of the given stage."""
        return self.embed_dim * 2**stage

    @property
    def num_features(self) -> int:
        """Channels of the last stage."""
        return self.dim(len(self.depths) - 1)

    @property
    def feature_size(self) -> int:
        """Tokens along a side of the last stage."""
        return self.resolution(len(self.depths) - 1)


@dataclass(frozen=True)
class NPNetConfig:
    """Shapes of the noise, the text and the network. The default is the one for SDXL.

    Args:
        latent_channels: channels C of the latent noise, a square number g*g: the channels are laid
            out as a g x g grid of planes to form the matrix of the spectral branch.
        latent_height: rows H of the latent noise.
        latent_width: columns W of the latent noise.
        text_tokens: tokens of the prompt embeddings.
        text_dim: width of the prompt embeddings.
        spectral_hidden: hidden width of the two MLPs that read singular vectors.
        spectral_heads: attention heads over the singular triplets.
        spectral_mlp_hidden: hidden width of the MLP that writes the correction.
        swin: the Swin Transformer of the residual branch.

    Raises:
        ConfigError: a field is not positive, or two of them contradict each other.
    """

    kind: ClassVar[str] = "npnet"
    latent_channels: int = 4
    latent_height: int = 128
    latent_width: int = 128
    text_tokens: int = 77
    text_dim: int = 2048
    spectral_hidden: int = 64
    spectral_heads: int = 8
    spectral_mlp_hidden: int = 1024
    swin: SwinConfig = field(default_factory=SwinConfig)

    def __post_init__(self) -> None:
        require_positive_ints(self, "swin")
        if not isinstance(self.swin, SwinConfig):
            raise ConfigError(f"NPNetConfig.swin: expected a SwinConfig, given {self.swin!r}")
        if self.grid**2 != self.latent_channels:
            raise ConfigError(
                f"NPNetConfig.latent_channels: expected a square number (4, 9, 16, ...), "
                f"given {self.latent_channels}"
            )
        if self.num_singular_values % self.spectral_heads:
            raise ConfigError(
                f"NPNetConfig.spectral_heads: expected a divisor of {self.num_singular_values} "
                f"(the number of singular values), given {self.spectral_heads}"
            )

    @property
    def grid(self) -> int:
        """Side g of the g x g grid of channel planes."""
        return math.isqrt(self.latent_channels)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the spectral branch's matrix."""
        return self.grid * self.latent_height, self.grid * self.latent_width

    @property
    def num_singular_values(self) -> int:
        """Singular values of that matrix."""
        return min(self.matrix_shape)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the noise."""
        return self.latent_channels, self.latent_height, self.latent_width

    @property
    def text_shape(self) -> tuple[int, int]:
        """(tokens, width) of the prompt embeddings."""
        return self.text_tokens, self.text_dim

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back, safe for JSON."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: a field is missing, unknown or out of range.
        """
        plain = fields_from_dict(cls, values)
        return cls(**{**plain, "swin": SwinConfig(**fields_from_dict(SwinConfig, plain["swin"]))})
