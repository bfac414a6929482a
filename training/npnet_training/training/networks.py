"""The network of a training run: its configuration, first weights, frozen branches and precision."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from npnet_runtime.errors import CheckpointError, ConfigError
from npnet_runtime.networks.any_size_config import AnySizeConfig, config_for_shapes
from npnet_runtime.networks.npnet import NPNet
from npnet_runtime.networks.npnet_config import NPNetConfig, SwinConfig
from npnet_runtime.networks.prompt_attention import PromptAttentionConfig, default_channels
from npnet_runtime.networks.registry import Network, NetworkConfig, network_for
from npnet_runtime.weights import checkpoint
from npnet_training.errors import SettingsError, TrainError
from npnet_training.training.generator_lora import GeneratorLora, lora_for
from npnet_training.training.losses import Loss
from npnet_training.training.settings import NetworkSettings, TrainSettings
from npnet_training.training.source import PairSource, SourceInfo
from npnet_training.training.texts import Texts

BRANCHES = {
    "spectral": ("spectral_head.",),
    "residual": (
        "beta",
        "prompt_half.to_rgb.",
        "prompt_half.patch_embed.",
        "prompt_half.swin.",
        "prompt_half.from_features.",
    ),
    "text": ("alpha", "prompt_half.text_affine."),
}
"""Parameters of each branch of an `NPNet`, by the beginning of their names."""


def network_of(
    settings: TrainSettings, pairs: PairSource, texts: Texts, loss: Loss, device: torch.device
) -> Network | GeneratorLora:
    """The network of a run: see `make_network` and `lora_for`."""
    if settings.trains_lora:
        return lora_for(settings, pairs.info, loss, device)
    return make_network(settings, pairs.info, pairs.shapes, texts.shapes)


def make_network(
    settings: TrainSettings,
    info: SourceInfo,
    shapes: Sequence[tuple[int, int, int]] = (),
    texts: Mapping[str, tuple[int, ...]] | None = None,
) -> Network:
    """A trainable network for a dataset's shapes, on the CPU, in float32.

    Without a checkpoint the network begins as the identity: see `initialise`.

    Args:
        settings: kind and sizes of the network, seed of its first weights, and a checkpoint of any form that
            `npnet_runtime.weights.checkpoint.read` reads to start from, whose own sizes win.
        info: of the dataset.
        shapes: of its noise, where there are several.
        texts: shapes of what it reads of a prompt, see `Texts`; what the dataset's model encodes if left out.

    Raises:
        SettingsError: sizes that describe no network, or a network of one size for noise of several.
        TrainError: the checkpoint cannot be read, or is for other shapes.
    """
    try:
        config = _config(settings.network, info, shapes or [info.latent_shape], texts or info.texts)
    except ConfigError as error:
        raise SettingsError(f"--network: {error}") from error
    start_from = settings.start_from
    if start_from is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = network_for(config)
        if isinstance(network, NPNet):
            initialise(network, settings.seed)
        return network
    try:
        path = Path(start_from)
        state = checkpoint.read(path, None if checkpoint.own_config(path) else config)
    except CheckpointError as error:
        raise TrainError(f"--start-from: {error}") from error
    if state.config.kind != config.kind:
        raise TrainError(
            f"--start-from {start_from}: expected a network of kind {config.kind}, given one of "
            f"kind {state.config.kind}; give --network.kind {state.config.kind}"
        )
    if not serves(state.config, config):
        raise TrainError(
            f"--start-from {start_from}: expected a network for noise of shape {config.latent_shape} and "
            f"text of shape {config.text_shape}, as in the dataset; given {state.config.latent_shape} and "
            f"{state.config.text_shape}"
        )
    network = network_for(state.config)
    network.load_state_dict(state.state)
    return network


def serves(given: NetworkConfig, wanted: NetworkConfig) -> bool:
    """Whether a network takes the noise and the prompts that another is made for."""
    if not isinstance(given, AnySizeConfig):
        return (given.latent_shape, given.text_shape) == (wanted.latent_shape, wanted.text_shape)
    sides = all(given.least_side <= side <= given.most_side for side in wanted.latent_shape[1:])
    widths = (given.latent_channels, given.text_dim) == (wanted.latent_channels, wanted.text_dim)
    fits = sides and widths and wanted.text_tokens <= given.most_tokens
    read = set(given.optional_inputs) <= set(getattr(wanted, "optional_inputs", ()))
    return fits and read and given.pooled_dim in (0, getattr(wanted, "pooled_dim", 0))


def _config(
    settings: NetworkSettings,
    info: SourceInfo,
    shapes: Sequence[tuple[int, int, int]],
    texts: Mapping[str, tuple[int, ...]],
) -> NetworkConfig:
    latent = info.latent_shape
    text = texts["embeds"][0], texts["embeds"][1]
    if settings.kind == AnySizeConfig.kind:
        sides = [side for shape in shapes for side in shape[1:]]
        given = (
            {"least_side": max(1, min(sides) // 4), "most_side": 2 * max(sides)} if len(shapes) > 1 else {}
        )
        chosen = {name: value for name, value in settings.prompt_attention_2 if value is not None}
        pooled = texts.get("pooled", (0,))[0]
        seconds = texts.get("second_embeds", (0, 0))
        options: dict[str, Any] = {**given, **chosen}
        return config_for_shapes(
            latent, text, pooled_dim=pooled, second_shape=(seconds[0], seconds[1]), **options
        )
    require_one_size(settings.kind, shapes)
    if settings.kind == PromptAttentionConfig.kind:
        sizes = settings.prompt_attention
        channels = sizes.channels or default_channels(*latent[1:])
        return PromptAttentionConfig(
            *latent, *text, channels=channels, blocks=sizes.blocks, heads=sizes.heads
        )
    values = settings.npnet.model_dump()
    swin = {name.removeprefix("swin_"): values.pop(name) for name in list(values) if name.startswith("swin_")}
    return NPNetConfig(*latent, *text, **values, swin=SwinConfig(**swin))


def require_one_size(kind: str, shapes: Sequence[tuple[int, int, int]]) -> None:
    """Refuse noise of several sizes for a kind of network that is made for one.

    Raises:
        SettingsError: that is so.
    """
    if len(shapes) > 1 and kind not in (AnySizeConfig.kind, "generator-lora"):
        raise SettingsError(
            f"--network.kind {kind}: expected noise of one size, given pairs of {len(shapes)}: "
            f"{', '.join(map(str, shapes))}; give --network.kind {AnySizeConfig.kind}"
        )


def initialise(network: NPNet, seed: int) -> None:
    """First weights of an NPNet that is trained from nothing, in place; golden noise is the noise, exactly.

    alpha and beta start at zero, as in the published code, and so does the layer that writes the correction
    of the singular values. Each of the three branches is thereby a product with zero, as in ReZero
    (Bachlechner et al. 2020, arXiv 2003.04887): the zeros get a gradient in the first step, everything behind
    them from the second on. Matrices of the Swin Transformer and its position bias are drawn from a normal
    distribution of deviation 0.02, cut at two (Liu et al. 2021); the others keep PyTorch's uniform one.
    """
    # Drawn again, because the caller's random numbers made the network that comes in.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm)):
                module.reset_parameters()
        for name, parameter in network.prompt_half.swin.named_parameters():
            if name.endswith("relative_position_bias_table") or parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
    last: Any = network.spectral_head.f_mlp[-1]
    for parameter in (last.weight, last.bias, network.alpha, network.beta):
        nn.init.zeros_(parameter)


def freeze(network: nn.Module, branches: Iterable[str], *, from_nothing: bool) -> None:
    """Stop training branches of an NPNet.

    From nothing, a frozen branch adds nothing for good: a frozen text branch does not see the prompt.

    Raises:
        SettingsError: the network has no such branches.
    """
    branches = tuple(branches)
    if branches and not isinstance(network, NPNet):
        raise SettingsError(f"--freeze {' '.join(branches)}: only networks of kind npnet have these branches")
    prefixes = tuple(prefix for branch in branches for prefix in BRANCHES[branch])
    for name, parameter in network.named_parameters():
        if prefixes and name.startswith(prefixes):
            parameter.requires_grad_(False)
            if from_nothing and name.startswith("prompt_half.text_affine."):
                nn.init.zeros_(parameter)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise SettingsError(f"--freeze {' '.join(branches)}: nothing is left to train")


def without_scalars(network: nn.Module) -> frozenset[str]:
    """Give parameters without a dimension one of size 1, in place, and return their names.

    FSDP cuts parameters along a dimension, so it refuses alpha and beta as they are; the forward pass
    broadcasts either.
    """
    names = [name for name, parameter in network.named_parameters() if parameter.ndim == 0]
    for name in names:
        owner, _, own_name = name.rpartition(".")
        parameter = network.get_parameter(name)
        wider = nn.Parameter(parameter.detach().reshape(1), requires_grad=parameter.requires_grad)
        setattr(network.get_submodule(owner), own_name, wider)
    return frozenset(names)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: matrices are decayed, vectors and scalars (biases, norms, alpha, beta) are not."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def autocast_products(network: nn.Module, device_type: str) -> None:
    """Compute the matrix products of the network in bfloat16 in training, its weights staying float32.

    In an NPNet these are those of the spectral head and the Swin Transformer, as `NPNet.to_precision`
    chooses for inference: softmax, the sums of norms and over the text and the reconstruction keep float32.
    As in inference, the rows between the Swin Transformer's blocks are bfloat16.
    """
    if not isinstance(network, NPNet):
        _autocast(network, device_type)
        return
    _autocast(network.spectral_head, device_type)
    _autocast(network.prompt_half.swin, device_type, halve=True)


def _autocast(module: nn.Module, device_type: str, *, halve: bool = False) -> None:
    """Run a module's forward pass under autocast, its input in bfloat16 with `halve`, its output float32."""
    forward: Callable[..., Tensor] = module.forward

    @functools.wraps(forward)
    def run(*arguments: Any) -> Tensor:
        if halve:
            arguments = tuple(argument.to(torch.bfloat16) for argument in arguments)
        with torch.autocast(device_type, torch.bfloat16):
            return forward(*arguments).float()

    setattr(module, "forward", run)  # noqa: B010


def require_own_precision(precision: str) -> None:
    """Refuse a precision of `accelerate launch` that is not the run's own, which alone would count.

    Raises:
        TrainError: they differ.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()  # as accelerate launch hands it on
    if asked not in ("no", precision):
        raise TrainError(
            f"accelerate launch --mixed_precision {asked}: expected no or the run's --precision, "
            f"given {precision}; give accelerate --mixed_precision no, and for bfloat16 npnet-train "
            "--precision bf16"
        )
