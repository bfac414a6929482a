"""The graphs that an engine of each kind of network consists of: their names, inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from npnet_runtime.networks.any_size import FEATURES
from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.networks.registry import NetworkConfig

SPECTRAL_HEAD, PROMPT_HALF, NETWORK = "spectral_head", "prompt_half", "network"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """A length that varies from call to call: `times` a number from `least` to `most` that `name` names."""

    name: str
    least: int
    most: int
    times: int = 1

    @property
    def symbol(self) -> str:
        """What the length is called in an ONNX graph."""
        return self.name if self.times == 1 else f"{self.times}*{self.name}"


@dataclass(frozen=True)
class Graph:
    """Inputs and outputs of a graph, in order. All are float32.

    Args:
        inputs: shapes without the batch; of those that vary, as the engine is tuned and checked.
        outputs: likewise.
        axes: by input or output and axis behind the batch, what varies; empty where nothing does.
    """

    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    axes: dict[str, dict[int, Axis]] = field(default_factory=dict)

    def bounds(self, name: str) -> tuple[Shape, Shape]:
        """The smallest and the largest shape of an input, without the batch."""
        smallest, largest = list(self.inputs[name]), list(self.inputs[name])
        for index, axis in self.axes.get(name, {}).items():
            smallest[index], largest[index] = axis.least * axis.times, axis.most * axis.times
        return tuple(smallest), tuple(largest)

    def traced(self) -> dict[str, Shape]:
        """Shapes of the inputs to trace with: no length that varies is 1, which a trace takes for fixed."""
        shapes = {}
        for name, shape in self.inputs.items():
            sides = list(shape)
            for index, axis in self.axes.get(name, {}).items():
                sides[index] = min(max(sides[index] // axis.times, 2), axis.most) * axis.times
            shapes[name] = tuple(sides)
        return shapes

    def takes(self, inputs: Sequence[Shape]) -> bool:
        """Whether inputs have shapes, with one batch, that the graph computes with."""
        found: dict[str, set[float]] = {}
        for (name, shape), given in zip(self.inputs.items(), inputs, strict=True):
            if len(given) != 1 + len(shape):
                return False
            smallest, largest = self.bounds(name)
            found.setdefault("", set()).add(given[0])
            for index, axis in self.axes.get(name, {}).items():
                found.setdefault(axis.name, set()).add(given[1 + index] / axis.times)
            if not all(a <= side <= b for a, side, b in zip(smallest, given[1:], largest, strict=True)):
                return False
        return all(len(lengths) == 1 and float(*lengths).is_integer() for lengths in found.values())

    def lengths(self, inputs: Mapping[str, Shape]) -> tuple[tuple[str, int], ...]:
        """What varies, by the name it has in the ONNX graph, of inputs of these shapes, with their batch."""
        found = {
            axis.symbol: inputs[name][1 + index]
            for name, axes in self.axes.items()
            if name in inputs
            for index, axis in axes.items()
        }
        return tuple(found.items())

    def output_shapes(self, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of the outputs, with their batch.

        Args:
            inputs: shapes of the inputs, with their batch.
        """
        rows = next(iter(inputs.values()))[0]
        found = dict(self.lengths(inputs))
        shapes = {}
        for name, shape in self.outputs.items():
            varying = self.axes.get(name, {})
            sides = (found[varying[i].symbol] if i in varying else side for i, side in enumerate(shape))
            shapes[name] = (rows, *sides)
        return shapes


def graphs(config: NetworkConfig) -> dict[str, Graph]:
    """The graphs of an engine, by name; each is also the name of the network's part that computes it.

    Args:
        config: of the network.
    """
    if isinstance(config, AnySizeConfig):
        return {NETWORK: _any_size(config)}
    whole: dict[str, Shape] = {"noise": config.latent_shape, "prompt_embeds": config.text_shape}
    if not isinstance(config, NPNetConfig):
        return {NETWORK: Graph(whole, {"golden": config.latent_shape})}
    (rows, columns), k = config.matrix_shape, config.num_singular_values
    channels, width, n = config.latent_channels, config.latent_width, config.swin.feature_size
    return {
        SPECTRAL_HEAD: Graph({"u": (rows, k), "s": (k,), "vh": (k, columns)}, {"f": (k,)}),
        PROMPT_HALF: Graph(whole, {"scale_shift": (2 * channels,), "residual": (channels, n, width)}),
    }


def _any_size(config: AnySizeConfig) -> Graph:
    stride = config.stride
    height, width = config.padded(config.latent_height, config.latent_width)
    least, most = -(-config.least_side // stride), -(-config.most_side // stride)
    sides = {
        times: (Axis("rows", least, most, times), Axis("columns", least, most, times))
        for times in (stride, 1)
    }
    latent = (config.latent_channels, height, width)
    tokens, seconds = (Axis(name, 1, config.most_tokens) for name in ("tokens", "second_tokens"))
    inputs: dict[str, tuple[Shape, dict[int, Axis]]] = {
        "noise": (latent, dict(enumerate(sides[stride], 1))),
        "prompt_embeds": (config.text_shape, {0: tokens}),
        "mask": (config.text_shape[:1], {0: tokens}),
        "positions": ((FEATURES, height // stride, width // stride), dict(enumerate(sides[1], 1))),
        "pooled": ((config.pooled_dim,), {}),
        "second_embeds": ((config.second_tokens, config.second_dim), {0: seconds}),
        "second_mask": ((config.second_tokens,), {0: seconds}),
    }
    always = ("noise", "prompt_embeds", "mask", "positions")
    taken = {name: inputs[name] for name in (*always, *config.optional_inputs)}
    axes = {name: varying for name, (_, varying) in taken.items()}
    shapes = {name: shape for name, (shape, _) in taken.items()}
    return Graph(shapes, {"golden": latent}, {**axes, "golden": axes["noise"]})
