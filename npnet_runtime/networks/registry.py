"""The kinds of network, and where each is found by name."""

from __future__ import annotations

from typing import Any

import torch

from npnet_runtime.errors import ConfigError
from npnet_runtime.networks.any_size import AnySizeNet
from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.networks.npnet import NPNet
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.networks.prompt_attention import PromptAttentionConfig, PromptAttentionNet

NetworkConfig = NPNetConfig | PromptAttentionConfig | AnySizeConfig
Network = NPNet | PromptAttentionNet | AnySizeNet
_KINDS: dict[str, tuple[type[NetworkConfig], type[Network]]] = {
    NPNetConfig.kind: (NPNetConfig, NPNet),
    PromptAttentionConfig.kind: (PromptAttentionConfig, PromptAttentionNet),
    AnySizeConfig.kind: (AnySizeConfig, AnySizeNet),
}
KINDS = tuple(_KINDS)


def network_for(config: NetworkConfig) -> Network:
    """A network of that configuration, with PyTorch's first weights."""
    network: Any = _KINDS[config.kind][1]
    return network(config)


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
    """Read what `to_dict` of any configuration wrote.

    Raises:
        ConfigError: an unknown kind, or a field that is missing, unknown or out of range.
    """
    kind = values.get("kind") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"network: expected the kind {' or '.join(KINDS)}, given {kind!r}")
    return _KINDS[kind][0].from_dict(values)
