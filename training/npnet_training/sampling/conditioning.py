"""Prompts as a diffusion model reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from npnet_training.errors import SettingsError


@dataclass(frozen=True)
class Conditioning:
    """A batch of encoded prompts.

    Args:
        prompt_embeds: (B, tokens, width), what a golden-noise network reads, in the pipeline's dtype.
        rest: what else the model reads of the prompts, by the pipeline's argument: pooled embeddings,
            masks, those of a second text encoder; (B, ...) each.
        negative: all of it for the negative prompt, (B, ...) each; None if it was not asked for.
    """

    prompt_embeds: Tensor
    rest: Mapping[str, Tensor] = field(default_factory=dict)
    negative: Mapping[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def __getitem__(self, rows: slice | list[int]) -> Conditioning:
        """The given rows."""
        negative = None if self.negative is None else {k: v[rows] for k, v in self.negative.items()}
        return Conditioning(self.prompt_embeds[rows], {k: v[rows] for k, v in self.rest.items()}, negative)

    @property
    def positive(self) -> dict[str, Tensor]:
        """Everything of the prompts, by the pipeline's argument."""
        return {"prompt_embeds": self.prompt_embeds, **self.rest}

    def guided(self) -> dict[str, Tensor]:
        """Negative and positive rows in one batch of 2 B, in this order.

        Raises:
            SettingsError: it was made without the negative prompt.
        """
        negative = self._negative()
        return {name: torch.cat([negative[name], value]) for name, value in self.positive.items()}

    def arguments(self, guided: bool) -> dict[str, Tensor]:
        """Keyword arguments of the pipeline's call.

        Raises:
            SettingsError: guided, and made without the negative prompt.
        """
        if not guided:
            return self.positive
        return self.positive | {f"negative_{name}": value for name, value in self._negative().items()}

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on a device."""
        negative = None if self.negative is None else {k: v.to(device) for k, v in self.negative.items()}
        rest = {k: v.to(device) for k, v in self.rest.items()}
        return Conditioning(self.prompt_embeds.to(device), rest, negative)

    @staticmethod
    def cat(parts: Iterable[Conditioning]) -> Conditioning:
        """One batch of several of the same model.

        The negative prompts are kept if every part has one.
        """
        parts = list(parts)
        rest = {name: torch.cat([part.rest[name] for part in parts]) for name in parts[0].rest}
        negatives = [part.negative for part in parts if part.negative is not None]
        negative = None
        if len(negatives) == len(parts):
            negative = {name: torch.cat([one[name] for one in negatives]) for name in negatives[0]}
        return Conditioning(torch.cat([part.prompt_embeds for part in parts]), rest, negative)

    def _negative(self) -> Mapping[str, Tensor]:
        if self.negative is None:
            raise SettingsError(
                "guidance: a scale other than 1 needs the negative prompt; encode with unconditional=True"
            )
        return self.negative
