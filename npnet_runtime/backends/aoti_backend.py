"""The AOTInductor back end: the graphs compiled ahead of time by `torch.export` and Inductor."""

from __future__ import annotations

import os
import tempfile
import threading
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.backends.float32 import Float32Products
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.errors import BundleError, InputError
from npnet_runtime.networks.graphs import graphs

SUFFIX = ".pt2"


class AotiBackend:
    """Runs the packages. Nothing is compiled here, and Inductor's Python is not even imported.

    On CUDA the work is queued on the caller's current stream.

    Args:
        bundle: of the engine `aoti`.
        device: where to run.

    Raises:
        BundleError: a package was changed, or torch cannot load it.
    """

    capture_obstacle = None

    def __init__(self, bundle: EngineBundle, device: torch.device) -> None:
        self.device = device
        # The package's own bookkeeping of concurrent calls makes the host wait for the GPU and cannot be
        # captured in a graph. Without it, one thread at a time may add its work.
        self._lock = threading.Lock()
        self._float32 = Float32Products(bundle.manifest, device)
        self._max_batch = bundle.manifest.max_batch
        self._graphs = graphs(bundle.manifest.config)
        self._packages = {name: self._load(bundle, name + SUFFIX) for name in self._graphs}

    def for_capture(self) -> AotiBackend:
        """See `Backend`: it keeps nothing from one run to the next."""
        return self

    def run(self, graph: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See `Backend`.

        Raises:
            InputError: of other shapes, or more rows than the engine was built for.
            BackendError: an engine in fp32, and matrix products set to TF32.
        """
        # The packages do not look: they would read and write what lies beyond.
        rows, shapes = len(inputs[0]), self._graphs[graph].inputs.values()
        given = [tuple(tensor.shape) for tensor in inputs]
        if not 1 <= rows <= self._max_batch or given != [(rows, *shape) for shape in shapes]:
            raise InputError(
                f"{graph}: expected inputs of shapes {list(shapes)} behind one batch of 1 to "
                f"{self._max_batch}, given {given}; call it in parts, or build with a larger --max-batch"
            )
        with self._lock, self._float32():
            return tuple(self._packages[graph].boxed_run([tensor.contiguous() for tensor in inputs]))

    def _load(self, bundle: EngineBundle, name: str) -> Any:
        content = bundle.read(name)
        descriptor, path = tempfile.mkstemp(suffix=".pt2")  # readable by this user only
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            return load_package(path, self.device)
        except RuntimeError as error:
            raise BundleError(
                f"{bundle.path / name}: AOTInductor cannot load it: {error}; "
                f"write it again with: {bundle.rebuild_command()}"
            ) from error
        finally:
            os.unlink(path)


def load_package(path: str, device: torch.device) -> Any:
    """A package, with the method `boxed_run` that takes and gives a list of tensors.

    Raises:
        RuntimeError: torch cannot load it.
    """
    # `aoti_load_package` wraps this class, imports all of Inductor (seconds), and parses the names of
    # inputs and outputs at every call.
    loader = torch._C._aoti.AOTIModelPackageLoader
    index = -1 if device.index is None else device.index
    run_single_threaded, num_runners = True, 1
    return loader(path, "model", run_single_threaded, num_runners, index)
