"""The PyTorch back end: the network itself, on the CPU or a CUDA device."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from npnet_kernels import text_affine
from npnet_kernels.backends import Backend as Kernels
from npnet_runtime.bundle import EngineBundle
from npnet_runtime.errors import BundleError
from npnet_runtime.network import NPNet

WEIGHTS = "weights.safetensors"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchBackend:
    """Runs `NPNet` eagerly, in the precision its weights are stored in.

    Args:
        bundle: of the engine `torch`.
        device: where to run.
        kernels: which implementation of our operators; see `npnet_kernels.choose_backend`.

    Raises:
        BundleError: the weights were changed, or do not fit the manifest's configuration.
    """

    def __init__(self, bundle: EngineBundle, device: torch.device, kernels: Kernels = "auto") -> None:
        self.device = device
        self._kernels = kernels
        try:
            state = load(bundle.read(WEIGHTS))
            _check_dtypes(state, bundle)
            network = NPNet.from_state(bundle.manifest.config, state)
        except (SafetensorError, RuntimeError) as error:
            raise BundleError(f"{bundle.path / WEIGHTS} does not fit the manifest: {error}") from error
        self.network = network.to(device)

    def spectral_head(self, u: Tensor, s: Tensor, vh: Tensor) -> Tensor:
        """See `Backend`."""
        return self.network.spectral_head(u, s, vh)

    def prompt_half(self, noise: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backend`."""
        half = self.network.prompt_half
        affine = half.text_affine
        scale_shift = text_affine(prompt_embeds, affine.weight, affine.bias, backend=self._kernels)
        return scale_shift, half.residual(noise, scale_shift)


def _check_dtypes(state: dict[str, Tensor], bundle: EngineBundle) -> None:
    with torch.device("meta"):
        network = NPNet(bundle.manifest.config).float().to_precision(DTYPES[bundle.manifest.precision])
    for name, expected in network.state_dict().items():
        if name in state and state[name].dtype != expected.dtype:
            raise BundleError(
                f"{bundle.path / WEIGHTS}: {name}: expected {expected.dtype} in a bundle of precision "
                f"{bundle.manifest.precision}, given {state[name].dtype}"
            )
