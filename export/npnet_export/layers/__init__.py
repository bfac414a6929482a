"""`npnet-export verify --debug-layers`: where an engine leaves the float32 network, layer by layer."""

from npnet_export.layers.debug import debug_layers
from npnet_export.layers.report import THRESHOLDS, Layer, LayerReport, compare_layers

__all__ = ["THRESHOLDS", "Layer", "LayerReport", "compare_layers", "debug_layers"]
