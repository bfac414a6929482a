"""Golden noise for diffusion models (NPNet, arXiv 2411.09502), at no cost a user can notice."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npnet_runtime.bundles.bundle import EngineBundle
    from npnet_runtime.errors import NPNetError
    from npnet_runtime.golden import GoldenNoise, PreparedNoise
    from npnet_runtime.integrations.diffusers.golden_lora import GoldenLora
    from npnet_runtime.networks.npnet import NPNet
    from npnet_runtime.networks.npnet_config import NPNetConfig
    from npnet_runtime.prefetch import Prefetcher

__version__ = "0.1.0"

__all__ = [
    "EngineBundle",
    "GoldenLora",
    "GoldenNoise",
    "NPNet",
    "NPNetConfig",
    "NPNetError",
    "Prefetcher",
    "PreparedNoise",
]

# Imported when first asked for: commands choose their threads, and answer `--help`, before torch is there.
_MODULES = {
    "EngineBundle": "bundles.bundle",
    "GoldenLora": "integrations.diffusers.golden_lora",
    "GoldenNoise": "golden",
    "NPNet": "networks.npnet",
    "NPNetConfig": "networks.npnet_config",
    "NPNetError": "errors",
    "Prefetcher": "prefetch",
    "PreparedNoise": "golden",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
