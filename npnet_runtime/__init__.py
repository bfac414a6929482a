"""Golden noise for diffusion models (NPNet, arXiv 2411.09502), at no cost a user can notice."""

from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.errors import NPNetError
from npnet_runtime.golden import GoldenNoise, PreparedNoise
from npnet_runtime.networks.npnet import NPNet
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.prefetch import Prefetcher

__version__ = "0.1.0"

__all__ = [
    "EngineBundle",
    "GoldenNoise",
    "NPNet",
    "NPNetConfig",
    "NPNetError",
    "Prefetcher",
    "PreparedNoise",
]
