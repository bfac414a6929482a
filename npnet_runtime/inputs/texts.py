"""What a network reads of a prompt: its embeddings, and with networks of any size their mask and more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from npnet_runtime.errors import InputError
from npnet_runtime.inputs.checks import check_finite, check_prompt_embeds, check_tensor
from npnet_runtime.inputs.prompts import TokenPolicy, fit_tokens, one_for_each
from npnet_runtime.networks.any_size import positions
from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.networks.registry import NetworkConfig

TOKENS_ON_CUDA = 64
"""Prompts are filled up to multiples of it there: each number of tokens has a graph of its own."""


@dataclass(frozen=True)
class Prompt:
    """The prompts of a batch, as a pipeline encodes them. P: 1, or a divisor of the batch of noise.

    Args:
        embeds: (P, tokens, width); or one (tokens, width) for each prompt, of which those of fewer tokens
            than the longest are filled up and masked.
        mask: (P, tokens), nonzero for a token and 0 for none; all are tokens if left out.
        pooled: (P, width).
        second_embeds: (P, tokens, width) of a second text encoder.
        second_mask: (P, tokens) of its tokens.
    """

    embeds: Tensor | Sequence[Tensor]
    mask: Tensor | None = None
    pooled: Tensor | None = None
    second_embeds: Tensor | None = None
    second_mask: Tensor | None = None

    @property
    def others(self) -> dict[str, Tensor]:
        """What there is beside the embeddings, by field."""
        values = {item.name: getattr(self, item.name) for item in fields(self)[1:]}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def given(self) -> dict[str, Any]:
        """What there is, by the arguments of a call of `GoldenNoise`."""
        return {"prompt_embeds": self.embeds, **self.others}

    def map(self, function: Callable[[Tensor], Tensor]) -> Prompt:
        """The same of other tensors."""
        embeds = self.embeds
        made = function(embeds) if isinstance(embeds, Tensor) else [function(part) for part in embeds]
        return Prompt(made, **{name: function(tensor) for name, tensor in self.others.items()})

    def to(self, device: torch.device) -> Prompt:
        """The same on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def dealt_out(self, rows: int) -> Prompt:
        """One prompt as it is; several one after another to so many noises, from the first again."""
        if len(self.embeds) == 1:
            return self
        places = torch.arange(rows) % len(self.embeds)
        return self.padded().map(lambda tensor: tensor.index_select(0, places.to(tensor.device)))

    def padded(self) -> Prompt:
        """With `embeds` in one tensor.

        Raises:
            InputError: they are a list of something else than (tokens, width) of one width, or have a mask.
        """
        if isinstance(self.embeds, Tensor) or not isinstance(self.embeds, (list, tuple)):
            return self
        parts = self.embeds
        for part in parts:
            check_tensor("prompt_embeds", part)
        widths = {tuple(part.shape[1:]) for part in parts}
        if len(widths) != 1 or any(part.dim() != 2 for part in parts) or self.mask is not None:
            raise InputError(
                f"prompt_embeds: expected a tensor, or a list of tensors (tokens, width) and no mask, "
                f"given a list of shapes {[tuple(part.shape) for part in parts]}"
                + ("" if self.mask is None else " and a mask")
            )
        embeds = pad_sequence(list(parts), batch_first=True)
        lengths = torch.tensor([len(part) for part in parts], device=embeds.device)
        mask = torch.arange(embeds.shape[1], device=embeds.device) < lengths[:, None]
        return replace(self, embeds=embeds, mask=mask)


def as_prompt(
    embeds: Tensor | Sequence[Tensor] | Prompt,
    mask: Tensor | None = None,
    pooled: Tensor | None = None,
    second_embeds: Tensor | None = None,
    second_mask: Tensor | None = None,
) -> Prompt:
    """The arguments of a call in one, `padded`.

    Raises:
        InputError: a `Prompt` and what it has already; or as `Prompt.padded`.
    """
    others = {"mask": mask, "pooled": pooled, "second_embeds": second_embeds, "second_mask": second_mask}
    if not isinstance(embeds, Prompt):
        return Prompt(embeds, **others).padded()
    if twice := [name for name, tensor in others.items() if tensor is not None]:
        raise InputError(f"{twice[0]}: expected within the Prompt that was given, given beside it")
    return embeds.padded()


def fields_read(config: NetworkConfig) -> tuple[str, ...]:
    """The fields of `Prompt` that a network can read, `embeds` first."""
    return ("embeds", "mask", *config.optional_inputs) if isinstance(config, AnySizeConfig) else ("embeds",)


def check_prompt(
    prompt: Prompt,
    batch: int,
    config: NetworkConfig,
    device: torch.device,
    tokens: TokenPolicy = "error",
    *,
    finite: bool = True,
) -> None:
    """Check the prompts for a batch of noise.

    Args:
        prompt: `padded` ones.
        batch: number of noises.
        config: shapes of the network.
        device: of the engine.
        tokens: what is done with other numbers of tokens.
        finite: look at the values as well, which on CUDA makes the host wait.

    Raises:
        InputError: something that the network does not read, or lacks, or of a shape, dtype, device or value
            that it does not take.
    """
    given = prompt.given
    for name, value in given.items():
        check_tensor(name, value)
    others = fields_read(config)[1:]
    allowed = {"prompt_embeds", *others}
    if unread := sorted(set(given) - allowed):
        raise InputError(
            f"{unread[0]}: expected none, as a network of kind {config.kind} reads "
            f"{', '.join(sorted(allowed))} only; leave it out"
        )
    if missing := sorted({*others} - {"mask", "second_mask"} - set(given)):
        raise InputError(f"{missing[0]}: expected a tensor, which this network reads, given none")
    embeds: Any = prompt.embeds
    check_prompt_embeds(embeds, batch, config, device, tokens, finite=finite)
    if not isinstance(config, AnySizeConfig):
        return
    prompts, count = given["prompt_embeds"].shape[:2]
    expected: dict[str, tuple[int, ...]] = {"mask": (prompts, count), "pooled": (prompts, config.pooled_dim)}
    if "second_embeds" in given:
        seconds = given["second_embeds"].shape[1] if given["second_embeds"].dim() == 3 else 0
        if not 1 <= seconds <= config.most_tokens:
            raise InputError(
                f"second_embeds: expected shape (prompts, tokens, {config.second_dim}) with 1 to "
                f"{config.most_tokens} tokens, given {tuple(given['second_embeds'].shape)}"
            )
        expected |= {
            "second_embeds": (prompts, seconds, config.second_dim),
            "second_mask": (prompts, seconds),
        }
    for name, shape in expected.items():
        if name not in given:
            continue
        tensor = given[name]
        if tuple(tensor.shape) != shape or tensor.device != device or tensor.is_complex():
            raise InputError(
                f"{name}: expected real numbers of shape {shape} on {device}, as prompt_embeds has it, given "
                f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
            )
        if finite:
            check_finite(name, tensor)


def texts_of(
    prompt: Prompt, rows: int, config: NetworkConfig, size: tuple[int, ...], tokens: TokenPolicy
) -> tuple[Tensor, ...]:
    """What the network's graph reads beside the noise, in its order, a row for each noise.

    Args:
        prompt: checked.
        rows: of the noise.
        config: shapes of the network.
        size: H and W of the noise.
        tokens: what is done with other numbers of tokens.
    """
    embeds = prompt.embeds
    if not isinstance(embeds, Tensor):
        raise TypeError(f"expected padded embeddings, given {type(embeds).__name__}")
    if not isinstance(config, AnySizeConfig):
        return (one_for_each(fit_tokens(embeds, config.text_tokens, tokens), rows),)
    read = {"prompt_embeds": (embeds, prompt.mask)}
    if prompt.second_embeds is not None:
        read["second_embeds"] = prompt.second_embeds, prompt.second_mask
    pairs = [_masked(*pair, config.most_tokens) for pair in read.values()]
    found = [one_for_each(tensor, rows) for pair in pairs for tensor in pair]
    places = positions(size[0], size[1], config.stride, embeds.device).expand(rows, -1, -1, -1)
    pooled = () if prompt.pooled is None else (one_for_each(prompt.pooled, rows),)
    return (*found[:2], places, *pooled, *found[2:])


def _masked(embeds: Tensor, mask: Tensor | None, most: int) -> tuple[Tensor, Tensor]:
    embeds = embeds[:, :most]
    there = embeds.new_ones(embeds.shape[:2]) if mask is None else (mask[:, :most] != 0).to(embeds.dtype)
    if embeds.is_cuda:
        missing = min(-embeds.shape[1] % TOKENS_ON_CUDA, most - embeds.shape[1])
        embeds, there = F.pad(embeds, (0, 0, 0, missing)), F.pad(there, (0, missing))
    return embeds, there


def random_inputs(
    config: NetworkConfig,
    seeds: Iterable[int],
    device: torch.device | str = "cpu",
    size: tuple[int, ...] | None = None,
) -> tuple[Tensor, Prompt]:
    """Noise and prompts that a network takes, a row for each seed; nobody's generator is touched.

    Args:
        config: shapes of the network.
        seeds: of the rows: each the same whatever the others are.
        device: of the result; drawn on the CPU.
        size: H and W of the noise; None for the config's own.
    """
    shapes = {
        "noise": (config.latent_channels, *(size or config.latent_shape[1:])),
        "embeds": config.text_shape,
    }
    if isinstance(config, AnySizeConfig):
        shapes |= {"mask": config.text_shape[:1], "pooled": (config.pooled_dim,)}
        shapes |= {"second_embeds": (config.second_tokens, config.second_dim)}
        shapes |= {"second_mask": (config.second_tokens,)}
    drawn: dict[str, list[Tensor]] = {name: [] for name, shape in shapes.items() if all(shape)}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for name, rows in drawn.items():
            values = torch.randn(shapes[name], generator=generator)
            rows.append((values > -0.5).float() if name.endswith("mask") else values)
    stacked = {name: torch.stack(rows).to(device) for name, rows in drawn.items()}
    return stacked.pop("noise"), Prompt(**stacked)
