"""The kinds of network, and where each is found by name."""

from __future__ import annotations

from typing import Any

import torch

from npnet_runtime.errors import ConfigError
from npnet_runtime.networks.npnet import NPNet
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.networks.prompt_attention import PromptAttentionConfig, PromptAttentionNet

NetworkConfig = NPNetConfig | PromptAttentionConfig
Network = NPNet | PromptAttentionNet
KINDS = (NPNetConfig.kind, PromptAttentionConfig.kind)


def network_for(config: NetworkConfig) -> Network:
    """A network of that configuration, with PyTorch's first weights."""
    return NPNet(config) if isinstance(config, NPNetConfig) else PromptAttentionNet(config)


def network_from_state(config: NetworkConfig, state: dict[str, torch.Tensor]) -> Network:
    """The network around existing weights, without initialising or copying them.

    Args:
        config: of the network.
        state: what `state_dict` of such a network returns.

    Returns:
        The network, in eval mode, its parameters frozen.
    """
    with torch.device("meta"):
        network = network_for(config)
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False).eval()


def config_from_dict(values: dict[str, Any]) -> NetworkConfig:
    """Read what `to_dict` of either configuration wrote.

    Raises:
        ConfigError: an unknown kind, or a field that is missing, unknown or out of range.
    """
    kind = values.get("kind") if isinstance(values, dict) else None
    if kind == NPNetConfig.kind:
        return NPNetConfig.from_dict(values)
    if kind == PromptAttentionConfig.kind:
        return PromptAttentionConfig.from_dict(values)
    raise ConfigError(f"network: expected the kind {' or '.join(KINDS)}, given {kind!r}")
