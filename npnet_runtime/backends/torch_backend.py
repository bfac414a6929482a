"""The PyTorch back end: the network itself, on the CPU or a CUDA device."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from npnet_kernels import text_affine
from npnet_kernels.backends import Backend as Kernels
from npnet_runtime.backends.float32 import Float32Products
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.errors import BundleError
from npnet_runtime.networks.fused import fused_form
from npnet_runtime.networks.npnet import PromptHalf
from npnet_runtime.networks.registry import network_for, network_from_state

WEIGHTS = "weights.safetensors"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchBackend:
    """Runs the network eagerly, in the precision its weights are stored in.

    Args:
        bundle: of the engine `torch`.
        device: where to run.
        kernels: which implementation of our operators; see `npnet_kernels.choose_backend`.

    Raises:
        BundleError: the weights were changed, or do not fit the manifest's configuration.
    """

    capture_obstacle = None

    def __init__(self, bundle: EngineBundle, device: torch.device, kernels: Kernels = "auto") -> None:
        self.device = device
        self._kernels = kernels
        self._float32 = Float32Products(bundle.manifest, device)
        try:
            state = load(bundle.read(WEIGHTS))
            _check_dtypes(state, bundle)
            network = network_from_state(bundle.manifest.config, state)
        except (SafetensorError, RuntimeError) as error:
            raise BundleError(f"{bundle.path / WEIGHTS} does not fit the manifest: {error}") from error
        self.parts = network.to(device).parts()
        for name, part in self.parts.items():
            if isinstance(part, PromptHalf):
                self.parts[name] = fused_form(part, device, kernels) or part.freeze()

    def for_capture(self) -> TorchBackend:
        """See `Backend`: it keeps nothing from one run to the next."""
        return self

    def run(self, graph: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See `Backend`.

        Raises:
            BackendError: an engine in fp32, and matrix products set to TF32.
        """
        with self._float32():
            return self._run(graph, *inputs)

    def _run(self, graph: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        part = self.parts[graph]
        if isinstance(part, PromptHalf):
            noise, prompt_embeds = inputs
            affine = part.text_affine
            scale_shift = text_affine(prompt_embeds, affine.weight, affine.bias, backend=self._kernels)
            return scale_shift, part.residual(noise, scale_shift)
        outputs = part(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)


def _check_dtypes(state: dict[str, Tensor], bundle: EngineBundle) -> None:
    with torch.device("meta"):
        network = network_for(bundle.manifest.config).float().to_precision(DTYPES[bundle.manifest.precision])
    for name, expected in network.state_dict().items():
        if name in state and state[name].dtype != expected.dtype:
            raise BundleError(
                f"{bundle.path / WEIGHTS}: {name}: expected {expected.dtype} in a bundle of precision "
                f"{bundle.manifest.precision}, given {state[name].dtype}"
            )
