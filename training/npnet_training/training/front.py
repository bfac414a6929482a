"""The models that a network is rewarded in front of: the dataset's, or several of one latent space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from npnet_runtime.integrations.diffusers.latent_space import latent_space_of
from npnet_training.errors import SettingsError
from npnet_training.models import load_pipeline
from npnet_training.sampling import Denoiser
from npnet_training.training.generator import FrozenGenerator
from npnet_training.training.settings import OWN, TrainSettings
from npnet_training.training.source import SourceInfo
from npnet_training.training.source_model import require_same

ALIKE = 0.9
"""Cosine of a prompt's embeddings by two models from which on their texts count as the same: fine-tuned text
encoders are far above it, and other ones near zero."""
_PROBE = "a red circle left of a blue square"


def generators_of(settings: TrainSettings, info: SourceInfo, device: torch.device) -> list[FrozenGenerator]:
    """A frozen generator for each model that a reward is to be had from.

    Raises:
        ModelError: a model cannot be loaded.
        DatasetError: the dataset's model is another one now.
        SettingsError: models of different latent spaces, or of different texts without an encoder of the
            network's own.
    """
    sampler = settings.reward
    if not settings.model:
        return [FrozenGenerator.load(info, sampler, device, offline=settings.offline)]
    dtype: torch.dtype = getattr(torch, sampler.dtype)
    denoisers: dict[str, Denoiser] = {}
    for name in settings.model:
        pipe, _ = load_pipeline(name, device=device, dtype=dtype, offline=settings.offline)
        denoisers[name] = Denoiser(pipe)
        require_same(info, "latent channels", info.latent_shape[0], denoisers[name].latent_shape[0])
    _require_one_space(denoisers)
    if not settings.text.startswith(OWN):
        _require_one_text(settings, info, denoisers)
    return [FrozenGenerator(denoiser, sampler) for denoiser in denoisers.values()]


def _require_one_space(denoisers: dict[str, Denoiser]) -> None:
    spaces = {name: latent_space_of(denoiser.pipe) for name, denoiser in denoisers.items()}
    (first, own), *others = spaces.items()
    for name, space in others:
        wrong = own.differences(space) if own is not None and space is not None else []
        if wrong:
            raise SettingsError(
                f"--model: expected models of one latent space, given {first} and {name}, which differ: "
                f"{'; '.join(wrong)}"
            )


def _require_one_text(settings: TrainSettings, info: SourceInfo, denoisers: dict[str, Denoiser]) -> None:
    """Refuse models whose prompts look different to the network, which is given the dataset's model's."""
    known = dict(denoisers)
    if info.model not in known:
        pipe, _ = load_pipeline(info.model, offline=settings.offline)
        known = {info.model: Denoiser(pipe), **known}
    found = {name: _probed(denoiser) for name, denoiser in known.items()}
    own = found[info.model]
    for name, embeds in found.items():
        same = embeds.shape == own.shape and _cosine(embeds, own) >= ALIKE
        if not same:
            raise SettingsError(
                f"--model: expected models that encode prompts as {info.model} does, which the pairs are of, "
                f"given {name}, which has another text encoder; give the network one of its own: --text "
                f"{OWN}clip-l"
            )


def _probed(denoiser: Denoiser) -> Tensor:
    embeds = denoiser.prompt(denoiser.encode([_PROBE], unconditional=False)).padded().embeds
    if not isinstance(embeds, Tensor):
        raise TypeError(f"expected padded embeddings, given {type(embeds).__name__}")
    return embeds.float().cpu()


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def drawn(generators: Sequence[FrozenGenerator], seeds: Sequence[int]) -> FrozenGenerator:
    """One of them for a batch, by its seeds alone: the same whenever the batch comes again."""
    generator = torch.Generator().manual_seed(sum(seeds) % 2**31 * 31 + len(seeds))
    return generators[int(torch.randint(len(generators), (1,), generator=generator))]
