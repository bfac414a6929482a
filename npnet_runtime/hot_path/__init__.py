"""How a call is laid over threads, streams and CUDA graphs, and what is kept of it. No engine's own code."""

from npnet_runtime.hot_path.base import Early, Path
from npnet_runtime.hot_path.choice import GraphChoice, choose_graphs
from npnet_runtime.hot_path.graphed import GraphPath
from npnet_runtime.hot_path.host import HostPath
from npnet_runtime.hot_path.streams import StreamPath

__all__ = ["Early", "GraphChoice", "GraphPath", "HostPath", "Path", "StreamPath", "choose_graphs"]
