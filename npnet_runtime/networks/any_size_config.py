"""Shapes of the network for noise of any size; see `any_size`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from npnet_runtime.errors import ConfigError
from npnet_runtime.networks.npnet_config import fields_from_dict
from npnet_runtime.networks.prompt_attention import PromptAttentionConfig, default_channels
from npnet_runtime.networks.unet import GROUPS

LONGEST = 512
"""Tokens of the longest prompt, where nobody says otherwise: what FLUX and others read."""


@dataclass(frozen=True)
class AnySizeConfig:
    """Shapes of the noise, the text and the network.

    Args:
        latent_channels: channels C of the latent noise.
        latent_height: rows H of the noise that an engine is tuned and checked with.
        latent_width: its columns W.
        text_tokens: tokens T of the prompts that an engine is tuned and checked with.
        text_dim: width of the prompt embeddings.
        least_side: smallest H and W.
        most_side: largest H and W.
        most_tokens: most tokens of a prompt.
        pooled_dim: width of the pooled embedding; 0 for none.
        second_tokens: as `text_tokens`, of the second text; 0 for none.
        second_dim: its width; 0 for none.
        channels: of each level, from the full resolution down; each level halves the sides.
        blocks: residual blocks of each level, on the way down and on the way up.
        heads: attention heads at the lowest level.

    Raises:
        ConfigError: a field is out of range, or two of them contradict each other.
    """

    kind: ClassVar[str] = "prompt-attention-2"
    latent_channels: int
    latent_height: int
    latent_width: int
    text_tokens: int
    text_dim: int
    least_side: int
    most_side: int
    most_tokens: int
    pooled_dim: int = 0
    second_tokens: int = 0
    second_dim: int = 0
    channels: tuple[int, ...] = (48, 96)
    blocks: int = 1
    heads: int = 4

    def __post_init__(self) -> None:
        for name in ("pooled_dim", "second_tokens", "second_dim"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ConfigError(f"AnySizeConfig.{name}: expected 0 or a positive integer, given {value!r}")
        # What both kinds of network ask of their shapes is asked in one place.
        PromptAttentionConfig(*self.latent_shape, *self.text_shape, self.channels, self.blocks, self.heads)
        bounds = (self.least_side, self.most_side, self.most_tokens)
        if not all(type(bound) is int for bound in bounds):
            raise ConfigError(f"AnySizeConfig: expected bounds that are integers, given {bounds}")
        problems = {
            f"least_side: expected {self.stride} or more, as {len(self.channels)} levels divide by it, "
            f"given {self.least_side}": self.least_side < self.stride,
            f"sides: expected {self.least_side} to {self.most_side}, given "
            f"{self.latent_height} x {self.latent_width}": any(
                not self.least_side <= side <= self.most_side
                for side in (self.latent_height, self.latent_width)
            ),
            f"text_tokens: expected {self.most_tokens} or fewer, given {self.text_tokens}": self.text_tokens
            > self.most_tokens,
            f"second_tokens: expected {self.most_tokens} or fewer, and any where second_dim says a width, "
            f"given {self.second_tokens} of width {self.second_dim}": self.second_tokens > self.most_tokens
            or (self.second_tokens == 0) != (self.second_dim == 0),
        }
        for problem, present in problems.items():
            if present:
                raise ConfigError(f"AnySizeConfig.{problem}")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the noise that an engine is tuned and checked with."""
        return self.latent_channels, self.latent_height, self.latent_width

    @property
    def text_shape(self) -> tuple[int, int]:
        """(tokens, width) of such prompt embeddings."""
        return self.text_tokens, self.text_dim

    @property
    def stride(self) -> int:
        """Places of the noise to one of the lowest level, along each side."""
        return 1 << (len(self.channels) - 1)

    @property
    def optional_inputs(self) -> tuple[str, ...]:
        """What the network reads of a prompt beside its embeddings and their mask."""
        return (("pooled",) if self.pooled_dim else ()) + (
            ("second_embeds", "second_mask") if self.second_dim else ()
        )

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The multiples of `stride` that noise of a size is brought to."""
        return -(-height // self.stride) * self.stride, -(-width // self.stride) * self.stride

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` reads back, safe for JSON."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: a field is missing, unknown or out of range.
        """
        return cls(**fields_from_dict(cls, values))


def channels_for(channels: int, height: int, width: int) -> tuple[int, ...]:
    """Widths of the levels for noise (C, H, W): those of `default_channels`, wider where C asks for it.

    The first level has to carry what distinguishes the channels of the noise: half of C or more.
    """
    plain = default_channels(height, width)
    first = max(plain[0], math.ceil(channels / 2 / GROUPS) * GROUPS)
    return tuple(first << level for level in range(len(plain)))


def config_for_shapes(
    latent_shape: tuple[int, int, int],
    text_shape: tuple[int, int],
    *,
    least_side: int | None = None,
    most_side: int | None = None,
    most_tokens: int | None = None,
    pooled_dim: int = 0,
    second_shape: tuple[int, int] = (0, 0),
    channels: tuple[int, ...] | None = None,
    blocks: int = 1,
    heads: int = 4,
) -> AnySizeConfig:
    """A configuration for noise and prompts of which one shape is known, with bounds around it.

    Args:
        latent_shape: (C, H, W) of the noise that an engine is tuned and checked with.
        text_shape: (tokens, width) of such a prompt.
        least_side: of the noise; a quarter of its shorter side if left out.
        most_side: twice its longer side if left out.
        most_tokens: those of the prompt, and at least `LONGEST`, if left out.
        pooled_dim: width of the pooled embedding; 0 for none.
        second_shape: (tokens, width) of a second text; zeros for none.
        channels: widths of the levels; chosen by `channels_for` if left out.
        blocks: see `AnySizeConfig`.
        heads: see `AnySizeConfig`.

    Raises:
        ConfigError: contradictions.
    """
    height, width = latent_shape[1:]
    widths = channels or channels_for(*latent_shape)
    while channels is None and len(widths) > 1 and min(height, width) >> (len(widths) - 1) < 2:
        widths = widths[:-1]  # a level of one place has nothing to attend to
    return AnySizeConfig(
        *latent_shape,
        *text_shape,
        least_side=least_side or max(1 << (len(widths) - 1), min(height, width) // 4),
        most_side=most_side or 2 * max(height, width),
        most_tokens=most_tokens or max(text_shape[0], second_shape[0], LONGEST),
        pooled_dim=pooled_dim,
        second_tokens=second_shape[0],
        second_dim=second_shape[1],
        channels=widths,
        blocks=blocks,
        heads=heads,
    )
