"""Weights anybody can regenerate from a seed, for machines without a checkpoint, and for tests.

They have the scale of the parity fixture: rows of unit norm, norms near 1, small biases. They give
valid timings and parity, but noise that is no better than what went in.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from npnet_runtime.networks.registry import NetworkConfig, network_for

ALPHA, BETA = 0.7, 0.05


def random_state(config: NetworkConfig, seed: int) -> dict[str, Tensor]:
    """A state dict of a network that depends on the seed and each tensor's name and shape only.

    Args:
        config: shapes of the network.
        seed: non-negative.

    Returns:
        float32 tensors.
    """

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return generator.standard_normal(shape, dtype=np.float32)

    return scaled_state(config, draw)


def scaled_state(
    config: NetworkConfig, draw: Callable[[str, tuple[int, ...]], np.ndarray]
) -> dict[str, Tensor]:
    """Scale standard normal draws as the weights of the parity fixture are.

    Args:
        config: shapes of the network.
        draw: (name, shape) -> standard normal float32 values of that shape.
    """
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in network_for(config).state_dict().items()}
    mixing = {"alpha": torch.tensor(ALPHA), "beta": torch.tensor(BETA)}
    state: dict[str, Tensor] = {name: value for name, value in mixing.items() if name in shapes}
    for name, shape in shapes.items():
        if name in state:
            continue
        value = draw(name, shape)
        if len(shape) > 1:
            value = value / np.sqrt(value[0].size, dtype=np.float32)
        elif name.endswith("weight"):
            value = 1 + 0.1 * value
        else:
            value = 0.1 * value
        state[name] = torch.from_numpy(value.astype(np.float32))
    return state
