"""How a call is laid over threads, streams and CUDA graphs; what is computed is in `npnet_runtime.passes`."""

from npnet_runtime.hot_path.base import Early, Path
from npnet_runtime.hot_path.choice import GraphChoice, choose_graphs
from npnet_runtime.hot_path.graphed import GraphPath
from npnet_runtime.hot_path.host import HostPath
from npnet_runtime.hot_path.streams import StreamPath

__all__ = ["Early", "GraphChoice", "GraphPath", "HostPath", "Path", "StreamPath", "choose_graphs"]
