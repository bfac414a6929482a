"""Which layers of an engine are looked at, and how."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from npnet_export.layers.modules import LayersOf, aoti_layers, torch_layers
from npnet_export.layers.report import THRESHOLDS, LayerReport
from npnet_kernels import SIGN_RULE, latent_to_matrix, svd
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.hot_path.passes import SIGNS
from npnet_runtime.inputs.resolution import to_network_size
from npnet_runtime.inputs.texts import random_inputs, texts_of
from npnet_runtime.networks.graphs import SPECTRAL_HEAD, graphs
from npnet_runtime.networks.registry import Network

_NOTES = {
    "torch": "the bundle's own modules",
    "onnxruntime": "the bundle's own graph",
    "openvino": "the bundle's own graph",
}
_BUILT = "built again from the weights with every layer an output"


def debug_layers(
    bundle: EngineBundle,
    network: Network,
    device: torch.device,
    seed: int,
    stage: Callable[[str], None] = lambda text: None,
) -> tuple[LayerReport, ...]:
    """Compare an engine with the float32 network, layer by layer, on one noise.

    What the layers are taken from depends on the engine:

    * `onnxruntime`, `openvino`: the bundle's graphs, every tensor on the way an output;
    * `torch`: the bundle's modules, by forward hooks;
    * `aoti`, `tensorrt`, `tensorrt-rtx`: their files show no layers. They are built again from the weights,
      every layer an output, and run. That takes as long as an export.

    Args:
        bundle: to look into.
        network: float32, on the CPU; see `verification.reference_network`.
        device: where the engine runs.
        seed: of the noise and the prompt embeddings.
        stage: told what happens next.

    Raises:
        BackendError: the engine cannot run on the device, or a module is missing.
        BundleError: a file of the bundle was changed, or cannot be loaded.
        ExportError: a graph is not that of the network, or the engine cannot be built again.

    Returns:
        One report for each graph of the engine, in the order in which they are listed.
    """
    manifest = bundle.manifest
    note = _NOTES.get(manifest.engine, _BUILT)
    layers_of = _layers_of(bundle, network, device, stage)
    found = []
    with torch.inference_mode():
        for graph, inputs in graph_inputs(bundle, network, seed).items():
            stage(f"comparing the layers of {graph} on the noise of seed {seed}")
            layers = layers_of(graph, inputs)
            found.append(LayerReport(graph, layers, THRESHOLDS[manifest.precision], note))
    return tuple(found)


def _layers_of(
    bundle: EngineBundle, network: Network, device: torch.device, stage: Callable[[str], None]
) -> LayersOf:
    engine = bundle.manifest.engine
    if engine == "torch":
        return torch_layers(bundle, network, device)
    if engine == "aoti":
        return aoti_layers(bundle, network, device)
    from npnet_export.layers.graphs import (
        onnxruntime_layers,
        openvino_layers,
        tensorrt_layers,
    )  # they need onnx

    if engine == "onnxruntime":
        return onnxruntime_layers(bundle, network, device)
    if engine == "openvino":
        return openvino_layers(bundle, network)
    return tensorrt_layers(bundle, network, device, stage)


def graph_inputs(bundle: EngineBundle, network: Network, seed: int) -> dict[str, tuple[Tensor, ...]]:
    """What each graph is given, float32 on the CPU."""
    noise, prompt = random_inputs(network.config, [seed])
    texts = texts_of(prompt, 1, network.config, noise.shape[2:], "error")
    own = to_network_size(noise, network.config)
    inputs: dict[str, tuple[Tensor, ...]] = dict.fromkeys(graphs(network.config), (own, *texts))
    if SPECTRAL_HEAD in inputs:
        # A bundle with a polynomial has no rule for the signs; its head is built all the same.
        signs = SIGNS[bundle.manifest.signs or SIGN_RULE]
        inputs[SPECTRAL_HEAD] = tuple(svd(latent_to_matrix(noise), signs=signs))
    return inputs
