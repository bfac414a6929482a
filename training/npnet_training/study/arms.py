"""Arms of the study: trained networks as they are, with branches left out, with signs or prompts changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npnet_kernels import SVD, latent_to_matrix, svd
from npnet_runtime.integrations.diffusers.lora_file import find_lora
from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.networks.npnet import NPNet
from npnet_runtime.networks.registry import Network
from npnet_runtime.weights import checkpoint
from npnet_training.embedded import WorldName
from npnet_training.errors import StudyError
from npnet_training.evaluation import Arm
from npnet_training.sampling import Conditioning
from npnet_training.study.conditions import ArmSet, Condition
from npnet_training.training.report import ABLATIONS, ablated

Factors = Callable[[SVD], SVD]
PAPER = "npnet"
_OF_SCENES = ("redenoised:guidance", "redenoised:text-mix", "best-of-2:scenes")
BUILT_IN: dict[WorldName, dict[ArmSet, tuple[str, ...]]] = {
    "shapes": {
        "ablations": ("redenoised", "best-of-2:shapes", "best-of-4:shapes"),
        "networks": ("redenoised", "best-of-2:shapes"),
        "short": ("redenoised", "best-of-2:shapes"),
    },
    "scenes": {
        "all": (*_OF_SCENES, "best-of-4:scenes", "best-of-8:scenes"),
        "networks": (*_OF_SCENES, "best-of-4:scenes"),
        "short": _OF_SCENES,
    },
}
"""What `npnet-evaluate` makes by name. The judge that chooses among seeds is the one that is reported, so
that these rows are the best that any judge could give."""


def read_networks(folder: Path) -> dict[str, Network]:
    """All networks of a folder, NAME.safetensors each, but for LoRAs.

    Raises:
        StudyError: there is none, or not the one trained the paper's way.
    """
    found = {
        path.stem: checkpoint.read(path).network().eval()
        for path in sorted(folder.glob("*.safetensors"))
        if find_lora(path) is None
    }
    if PAPER not in found:
        raise StudyError(
            f"--networks {folder}: expected checkpoints NAME.safetensors, {PAPER}.safetensors among them, "
            f"found {', '.join(found) or 'none'}; npnet-train makes them, see training/README.md"
        )
    return found


def lora_arms(folder: Path) -> dict[str, str]:
    """LoRAs of golden noise in a folder, NAME.safetensors each, by the arm that `npnet-evaluate` takes."""
    loras = sorted(path for path in folder.glob("*.safetensors") if find_lora(path) is not None)
    return {f"golden:{path}": path.stem for path in loras}


def make_arms(networks: dict[str, Network], condition: Condition, best: str) -> list[Arm]:
    """Arms of trained networks for a condition.

    Args:
        networks: by name.
        condition: see there; a network of one size is left out where it is of another.
        best: the network that `short` shows beside the paper's, and whose prompts are exchanged in `all`.
    """
    which, chosen = condition.arms, networks
    if which == "short":
        chosen = {name: networks[name] for name in dict.fromkeys((PAPER, best)) if name in networks}
    if condition.size is not None:
        chosen = {n: network for n, network in chosen.items() if isinstance(network.config, AnySizeConfig)}
    arms = [Arm(name, changed_by(network)) for name, network in chosen.items()]
    if which not in ("all", "ablations"):
        return arms
    paper = networks[PAPER]
    if which == "ablations" and isinstance(paper, NPNet):
        arms += [
            Arm(f"{PAPER}, {name}", changed_by(ablated(copy.deepcopy(paper), name))) for name in ABLATIONS
        ]
        arms.append(Arm(f"{PAPER}, signs at random", changed_by(paper, signs=_random_signs)))
    if best in networks:
        arms.append(Arm(f"{best}, prompts of others", changed_by(networks[best], others=True)))
    return arms


def changed_by(
    network: Network, *, signs: Factors | None = None, others: bool = False
) -> Callable[[Tensor, Conditioning], Tensor]:
    """What a network makes of noise (B, C, H, W) and its prompts.

    Args:
        network: in evaluation mode.
        signs: changes the factors that an NPNet is given.
        others: give every noise the prompt of the one before it.
    """

    @torch.inference_mode()
    def change(noise: Tensor, prompts: Conditioning) -> Tensor:
        factors = None
        if isinstance(network, NPNet):
            factors = svd(latent_to_matrix(noise.float()))
            factors = factors if signs is None else signs(factors)
        read: dict[str, Any] = {"prompt_embeds": prompts.prompt_embeds}
        if getattr(network.config, "pooled_dim", 0):
            read["pooled"] = prompts.positive["pooled_prompt_embeds"]
        read = {name: (value.roll(1, 0) if others else value).float() for name, value in read.items()}
        golden: Tensor = network(noise.float(), factors=factors, **read)
        return golden.clone()

    return change


def _random_signs(factors: SVD) -> SVD:
    """Each singular pair flipped or not by a fair coin, the same for the same factors."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, factors.s.shape, generator=generator).to(factors.s) * 2 - 1
    return SVD(factors.u * signs[:, None, :], factors.s, factors.vh * signs[:, :, None])
