"""The AOTInductor back end: the graphs compiled ahead of time by `torch.export` and Inductor."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.backends.float32 import Float32Products
from npnet_runtime.backends.unpacking import UnpackingFolder
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.errors import BackendError, BundleError, InputError
from npnet_runtime.networks.graphs import graphs

SUFFIX = ".pt2"
# What a system says of a folder that is mounted noexec, or full.
_REFUSED = ("failed to map segment", "Operation not permitted", "Permission denied", "No space left")


class AotiBackend:
    """Runs the packages. Nothing is compiled here, and Inductor's Python is not even imported.

    On CUDA the work is queued on the caller's current stream.

    Args:
        bundle: of the engine `aoti`.
        device: where to run.

    Raises:
        BundleError: a package was changed, or torch cannot load it.
        BackendError: its libraries cannot be unpacked where `TMPDIR` says, or loaded from there.
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
        self._folder = UnpackingFolder()
        try:
            self._packages = {name: self._load(bundle, name + SUFFIX) for name in self._graphs}
        except BaseException:
            self._folder.remove()  # the error's traceback holds this object
            raise

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
        rows, own = len(inputs[0]), self._graphs[graph]
        given = [tuple(tensor.shape) for tensor in inputs]
        if not 1 <= rows <= self._max_batch or not own.takes(given):
            shapes = ", ".join(
                str(least) if least == most else f"{least} to {most}"
                for least, most in map(own.bounds, own.inputs)
            )
            raise InputError(
                f"{graph}: expected inputs of shapes {shapes} behind one batch of 1 to "
                f"{self._max_batch}, given {given}; call it in parts, or build with a larger --max-batch"
            )
        with self._lock, self._float32():
            return tuple(self._packages[graph].boxed_run([tensor.contiguous() for tensor in inputs]))

    def _load(self, bundle: EngineBundle, name: str) -> Any:
        content = bundle.read(name)
        path = self._folder.path / name  # what was checked is what is loaded; readable by this user only
        try:
            path.write_bytes(content)
            with self._folder.named():
                return load_package(str(path), self.device)
        except (RuntimeError, OSError) as error:
            if any(sign in str(error) for sign in _REFUSED):
                raise BackendError(
                    f"AOTInductor cannot load libraries from {self._folder.path}, where TMPDIR says they go: "
                    f"{error}; set TMPDIR to a folder with room on a file system that may execute files"
                ) from error
            raise BundleError(
                f"{bundle.path / name}: AOTInductor cannot load it: {error}; "
                f"write it again with: {bundle.rebuild_command()}"
            ) from error
        finally:
            path.unlink(missing_ok=True)


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
