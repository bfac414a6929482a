"""The graphs that an engine of each kind of network consists of: their names, inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.networks.registry import NetworkConfig

SPECTRAL_HEAD, PROMPT_HALF, NETWORK = "spectral_head", "prompt_half", "network"


@dataclass(frozen=True)
class Graph:
    """Shapes of the inputs and outputs of a graph, in order, without the batch. All are float32."""

    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]


def graphs(config: NetworkConfig) -> dict[str, Graph]:
    """The graphs of an engine, by name; each is also the name of the network's part that computes it.

    Args:
        config: of the network.
    """
    whole = {"noise": config.latent_shape, "prompt_embeds": config.text_shape}
    if not isinstance(config, NPNetConfig):
        return {NETWORK: Graph(whole, {"golden": config.latent_shape})}
    (rows, columns), k = config.matrix_shape, config.num_singular_values
    channels, width, n = config.latent_channels, config.latent_width, config.swin.feature_size
    return {
        SPECTRAL_HEAD: Graph({"u": (rows, k), "s": (k,), "vh": (k, columns)}, {"f": (k,)}),
        PROMPT_HALF: Graph(whole, {"scale_shift": (2 * channels,), "residual": (channels, n, width)}),
    }
