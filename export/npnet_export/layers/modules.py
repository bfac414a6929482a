"""The layers of engines that run PyTorch's modules: noted by forward hooks, in the order of computation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from npnet_export.aoti import compile_package, compiled_form, own_cache
from npnet_export.engines import in_precision
from npnet_export.layers.report import Layer, compare_layers
from npnet_runtime.backends.aoti_backend import SUFFIX, load_package
from npnet_runtime.backends.torch_backend import TorchBackend
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.networks.fused import FusedPromptHalf
from npnet_runtime.networks.graphs import graphs
from npnet_runtime.networks.registry import Network

LayersOf = Callable[[str, tuple[Tensor, ...]], tuple[Layer, ...]]


class Record(dict[str, tuple[str, Tensor]]):
    """Name of a layer -> its kind and its output."""

    def add(self, name: str, kind: str, value: object) -> None:
        """Note a tensor of numbers; anything else, and a name met before, is passed over."""
        if isinstance(value, Tensor) and value.is_floating_point():
            self.setdefault(name, (kind, value.detach()))


@contextmanager
def recorded(part: nn.Module) -> Iterator[Record]:
    """Note what every module inside a part gives, and what the outermost of them are given.

    The latter stands for what is computed in the part itself, between its modules.

    Args:
        part: of a network; its own outputs are not noted.
    """
    record = Record()
    handles = []
    for name, module in part.named_modules():
        if not name:
            continue
        kind = type(module).__name__

        def after(_: nn.Module, inputs: object, output: object, name: str = name, kind: str = kind) -> None:
            record.add(name, kind, output)

        def before(_: nn.Module, inputs: tuple[object, ...], name: str = name) -> None:
            record.add(f"{name} (its input)", "input", inputs[0] if inputs else None)

        handles.append(module.register_forward_hook(after))
        if "." not in name:
            handles.append(module.register_forward_pre_hook(before))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


class Recorded(nn.Module):
    """Gives the layers of a part behind its outputs, for a compiler that is to keep them.

    Args:
        part: of a network.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self._compiled = compiled_form(part)
        # A form of kernels runs blocks of its own, which have the names of the part's.
        self.part = self._compiled if isinstance(self._compiled, FusedPromptHalf) else part

    def names(self, *inputs: Tensor) -> list[str]:
        """Of the layers, in the order in which they are given."""
        with recorded(self.part) as record:
            self._compiled(*inputs)
        return list(record)

    def forward(self, first: Tensor, second: Tensor, third: Tensor | None = None) -> tuple[Tensor, ...]:
        """The part's outputs, then the recorded layers in float32; the inputs are those of its graph."""
        inputs = (first, second) if third is None else (first, second, third)
        with recorded(self.part) as record:
            outputs = self._compiled(*inputs)
        # Copies: a compiled module may not give one tensor twice, or a view of another.
        return (*_tuple(outputs), *(layer.clone().float() for _, layer in record.values()))


def torch_layers(bundle: EngineBundle, network: Network, device: torch.device) -> LayersOf:
    """Of an engine of the kind `torch`: the bundle's own modules, as it runs them.

    Args:
        bundle: to look into.
        network: float32, on the CPU.
        device: where the engine runs.
    """
    backend = TorchBackend(bundle, device)

    def layers(graph: str, inputs: tuple[Tensor, ...]) -> tuple[Layer, ...]:
        with recorded(backend.parts[graph]) as given:
            outputs = backend.run(graph, *(tensor.to(device) for tensor in inputs))
        _add_outputs(given, network, graph, outputs)
        return _compare(given, _reference(network, graph, inputs))

    return layers


def aoti_layers(bundle: EngineBundle, network: Network, device: torch.device) -> LayersOf:
    """Of an engine by AOTInductor, compiled again: a package holds no layers that could be looked at.

    Args:
        bundle: whose precision and largest batch count; its packages are not read.
        network: float32, on the CPU.
        device: where the engine runs.
    """
    manifest = bundle.manifest
    parts = in_precision(network, manifest.precision).to(device).parts()

    def layers(graph: str, inputs: tuple[Tensor, ...]) -> tuple[Layer, ...]:
        wanted = graphs(network.config)[graph]
        module = Recorded(parts[graph]).eval()
        current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with own_cache(), current, tempfile.TemporaryDirectory(prefix="npnet-layers-") as folder:
            path = Path(folder) / (graph + SUFFIX)
            on_device = [tensor.to(device).contiguous() for tensor in inputs]
            names = module.names(*on_device)
            with torch.inference_mode(False):
                compile_package(module, wanted, manifest.max_batch, device, path)
            package = load_package(str(path), device)
            found = package.boxed_run(on_device)
        expected = _reference(network, graph, inputs)
        count = len(wanted.outputs)
        given = Record()
        for name, tensor in zip(names, found[count:], strict=True):
            given.add(name, expected[name][0], tensor)
        _add_outputs(given, network, graph, tuple(found[:count]))
        return _compare(given, expected)

    return layers


def _reference(network: Network, graph: str, inputs: tuple[Tensor, ...]) -> Record:
    part = network.parts()[graph]
    with recorded(part) as record:
        outputs = part(*inputs)
    _add_outputs(record, network, graph, _tuple(outputs))
    return record


def _add_outputs(record: Record, network: Network, graph: str, outputs: tuple[Tensor, ...]) -> None:
    """A graph's last output is computed last, and those before it ahead of all layers."""
    names = list(graphs(network.config)[graph].outputs)
    layers = list(record.items())
    record.clear()
    for name, tensor in zip(names[:-1], outputs[:-1], strict=True):
        record.add(name, "output", tensor)
    record.update(layers)
    record.add(names[-1], "output", outputs[-1])


def _compare(given: Record, expected: Record) -> tuple[Layer, ...]:
    return compare_layers((name, kind, tensor, expected[name][1]) for name, (kind, tensor) in given.items())


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
