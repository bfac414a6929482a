"""The rule by which a layer diverges, and the table of what was found.

A layer diverges if the relative RMS error of its output,

    rms(engine - float32) / rms(float32),

is above the threshold of the engine's precision. Both sides compute from the same inputs of the graph, so the
error of a layer includes what reached it from those before: the first layer above the threshold is where to
look, those behind it may only pass the error on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

# Ten times the largest error that layers of sound SDXL engines had with the weights of the parity fixture:
# 1.9e-3 in fp16 (ONNX Runtime) and 1.4e-2 in bf16 (PyTorch). In fp32 another order of summation moves 1e-5.
THRESHOLDS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1.5e-1}
SOFTMAX = "Softmax"  # the end of a kind: of a softmax, and of a cast of one
_BEFORE, _AFTER, _LARGEST = 3, 3, 6  # rows of the short table


@dataclass(frozen=True)
class Layer:
    """What one layer gave.

    Args:
        name: of the module, or of the graph's node behind the module it belongs to.
        kind: type of the module or operator.
        rms: root mean square of engine - float32.
        relative: `rms` by the root mean square of float32, or by 1 of a softmax; infinite where that is 0 and
            `rms` is not.
        max_abs: largest difference.
        not_finite: NaN and infinities in the engine's output where float32 has none.
        values: number of values of the output.
    """

    name: str
    kind: str
    rms: float
    relative: float
    max_abs: float
    not_finite: int
    values: int


@dataclass(frozen=True)
class LayerReport:
    """The layers of one graph of an engine.

    Args:
        graph: a name of `npnet_runtime.networks.graphs`.
        layers: in the order in which they are computed.
        threshold: of the relative error.
        note: what the engine's layers were taken from.
    """

    graph: str
    layers: tuple[Layer, ...]
    threshold: float
    note: str

    @property
    def diverging(self) -> Layer | None:
        """The first layer whose error is above the threshold, or not a number."""
        return next((layer for layer in self.layers if not layer.relative <= self.threshold), None)

    @property
    def not_finite(self) -> Layer | None:
        """The first layer with NaN or infinity where float32 has neither."""
        return next((layer for layer in self.layers if layer.not_finite), None)

    def __str__(self) -> str:
        first, broken = self.diverging, self.not_finite
        lines = [f"{self.graph}: {len(self.layers)} layers, {self.note}"]
        width = max((len(layer.name) for layer in self._shown()), default=0)
        kinds = max((len(layer.kind) for layer in self._shown()), default=0)
        lines.append(f"    {'layer':<{width}}  {'kind':<{kinds}}  {'rms':>8}  {'relative':>8}  {'max':>8}")
        lines += [
            f"  {'>' if layer is first else ' '} {layer.name:<{width}}  {layer.kind:<{kinds}}  "
            f"{layer.rms:8.2g}  {layer.relative:8.2g}  {layer.max_abs:8.2g}"
            for layer in self._shown()
        ]
        if first is None:
            lines.append(f"  no layer diverges (relative RMS error above {self.threshold:g})")
        else:
            lines.append(
                f"  first layer that diverges: {first.name} ({first.kind}), relative RMS error "
                f"{first.relative:.2g}, above {self.threshold:g}"
            )
        if broken is not None:
            lines.append(
                f"  first NaN or infinity: {broken.name} ({broken.kind}), {broken.not_finite} of "
                f"{broken.values} values"
            )
        return "\n".join(lines)

    def _shown(self) -> tuple[Layer, ...]:
        """Those around the first that diverges; without one, those with the largest errors."""
        if self.diverging is not None:
            at = self.layers.index(self.diverging)
            return self.layers[max(0, at - _BEFORE) : at + 1 + _AFTER]
        by_error = sorted(range(len(self.layers)), key=lambda at: self.layers[at].relative, reverse=True)
        return tuple(self.layers[at] for at in sorted(by_error[:_LARGEST]))


def compare_layers(pairs: Iterable[tuple[str, str, Tensor, Tensor]]) -> tuple[Layer, ...]:
    """Judge layers.

    Args:
        pairs: name, kind, the engine's output and that of float32, of one shape and any floating dtype.
    """
    return tuple(_compare(*pair) for pair in pairs)


def _compare(name: str, kind: str, given: Tensor, expected: Tensor) -> Layer:
    given, expected = given.double().flatten().cpu(), expected.double().flatten().cpu()
    error = given - expected
    rms, scale = (float(tensor.square().mean().sqrt()) for tensor in (error, expected))
    if kind.endswith(SOFTMAX):
        scale = 1.0
    relative = rms / scale if scale else (math.inf if rms else 0.0)
    broken = int((~given.isfinite() & expected.isfinite()).sum())
    largest = float(error.abs().max()) if len(error) else 0.0
    return Layer(name, kind, rms, relative, largest, broken, len(given))
