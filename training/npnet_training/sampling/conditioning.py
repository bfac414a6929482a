"""Prompts as a diffusion model reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from npnet_training.errors import SettingsError

Value = Tensor | list[Tensor]
"""(B, ...), or one tensor for each of B prompts."""


@dataclass(frozen=True)
class Conditioning:
    """A batch of encoded prompts, by the arguments that the pipeline's call has for them.

    Args:
        positive: of the prompts, `prompt_embeds` among them: embeddings, masks, pooled ones, those of further
            text encoders; B rows each, in the pipeline's dtype.
        negative: of the negative prompt, under `negative_...`, B rows each; None if it was not asked for.
        texts: the B prompts, where they are known; empty otherwise.
    """

    positive: Mapping[str, Value]
    negative: Mapping[str, Value] | None = None
    texts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positive["prompt_embeds"])

    def __getitem__(self, rows: slice | list[int]) -> Conditioning:
        """The given rows."""
        chosen = self.texts[rows] if isinstance(rows, slice) else tuple(self.texts[r] for r in rows)
        return replace(self._map(lambda value: _take(value, rows)), texts=chosen if self.texts else ())

    @property
    def prompt_embeds(self) -> Tensor:
        """(B, tokens, width).

        Raises:
            SettingsError: the pipeline has a tensor of its own for each prompt.
        """
        embeds = self.positive["prompt_embeds"]
        if not isinstance(embeds, Tensor):
            raise SettingsError("expected prompts in one tensor, given one for each prompt")
        return embeds

    def arguments(self, guided: bool) -> dict[str, Value]:
        """Keyword arguments of the pipeline's call.

        Raises:
            SettingsError: guided, and made without the negative prompt.
        """
        if not guided:
            return {**self.positive}
        if self.negative is None:
            raise SettingsError(
                "guidance: a scale other than 1 needs the negative prompt; encode with unconditional=True"
            )
        return {**self.positive, **self.negative}

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on a device."""

        def moved(value: Value) -> Value:
            return value.to(device) if isinstance(value, Tensor) else [part.to(device) for part in value]

        return self._map(moved)

    def expand(self, rows: int) -> Conditioning:
        """One prompt as so many."""

        def repeated(value: Value) -> Value:
            return value.expand(rows, *value.shape[1:]) if isinstance(value, Tensor) else [*value] * rows

        return replace(self._map(repeated), texts=self.texts * rows)

    @property
    def nbytes(self) -> int:
        """Size of the prompts' own values; the negative one's are shared."""
        values = self.positive.values()
        return sum(
            part.nbytes for value in values for part in ([value] if isinstance(value, Tensor) else value)
        )

    def mixed(self, empty: Conditioning, weight: float) -> Conditioning:
        """Embeddings of the prompt against those of an empty one, `empty + weight (prompt - empty)`.

        So the prompt counts for more or less in a model that has no guidance to turn (RF-Sampling,
        arXiv 2603.06165). Tokens that the empty prompt does not have stay as they are.

        Args:
            empty: the empty prompt, one row.
            weight: 1 for the prompt itself.
        """
        other = empty.positive
        found: dict[str, Value] = {}
        for name, value in self.positive.items():
            free = other[name]
            if isinstance(value, list):
                found[name] = [_against(part, free[0], weight) for part in value]
            elif "mask" in name or not isinstance(free, Tensor):
                found[name] = value
            elif value.dim() == 2:  # pooled
                found[name] = free + weight * (value - free)
            else:
                mask = other.get(f"{name}_mask", other.get(name.replace("embeds", "attention_mask")))
                found[name] = _against(value, free, weight, mask if isinstance(mask, Tensor) else None)
        return Conditioning(found, self.negative, self.texts)

    @staticmethod
    def cat(parts: Iterable[Conditioning]) -> Conditioning:
        """One batch of several of the same model.

        Prompts of fewer tokens than the longest are filled up, where the pipeline has a mask for them. The
        negative prompts are kept if every part has one.
        """
        parts = list(parts)
        negatives = [part.negative for part in parts if part.negative is not None]
        positive = joined([part.positive for part in parts])
        negative = joined(negatives) if len(negatives) == len(parts) else None
        texts = tuple(text for part in parts for text in part.texts) if all(p.texts for p in parts) else ()
        return Conditioning(positive, negative, texts)

    def _map(self, function: Callable[[Value], Value]) -> Conditioning:
        negative = self.negative
        return Conditioning(
            {name: function(value) for name, value in self.positive.items()},
            None if negative is None else {name: function(value) for name, value in negative.items()},
            self.texts,
        )


def joined(parts: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    """Values of several batches in one, filled up to the longest prompt.

    Raises:
        SettingsError: prompts of different lengths, and no mask that says so.
    """
    found: dict[str, Value] = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if isinstance(first, list):
            found[name] = [row for value in values for row in value]
            continue
        tensors = [value for value in values if isinstance(value, Tensor)]
        lengths = {value.shape[1] for value in tensors if value.dim() > 1}
        if len(lengths) > 1 and not any("mask" in other for other in parts[0]):
            raise SettingsError(f"{name}: expected prompts of one length, given {sorted(lengths)} tokens")
        found[name] = torch.cat([filled_up(value, max(lengths, default=0)) for value in tensors])
    return found


def _against(value: Tensor, free: Tensor, weight: float, there: Tensor | None = None) -> Tensor:
    """`free + weight (value - free)` of the tokens that both have.

    Args:
        value: (..., tokens, width).
        free: the same of the empty prompt.
        weight: of the first.
        there: (..., tokens), which of the second are tokens; all by default.
    """
    tokens = min(value.shape[-2], free.shape[-2])
    own, other = value[..., :tokens, :], free[..., :tokens, :]
    mixed = other + weight * (own - other)
    if there is not None:
        mixed = torch.where(there[..., :tokens, None] != 0, mixed, own)
    return torch.cat([mixed, value[..., tokens:, :]], dim=-2)


def filled_up(value: Tensor, tokens: int) -> Tensor:
    """(B, tokens, ...) with zeros behind what there is."""
    if value.dim() < 2 or value.shape[1] == tokens:
        return value
    return F.pad(value, [0, 0] * (value.dim() - 2) + [0, tokens - value.shape[1]])


def _take(value: Value, rows: slice | list[int]) -> Value:
    if isinstance(value, Tensor):
        return value[rows]
    return value[rows] if isinstance(rows, slice) else [value[row] for row in rows]
