"""Products of a float32 engine stay float32, whatever PyTorch was told: TF32 is off by 2e-3."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from npnet_kernels.precision import products_in_tf32
from npnet_runtime.bundles.manifest import Manifest
from npnet_runtime.errors import BackendError
from npnet_runtime.networks.npnet_config import NPNetConfig

_convolutions = threading.RLock()


class Float32Products:
    """For the back ends that compute by PyTorch's libraries; nothing to do on a CPU, or in half precision.

    Args:
        manifest: of the engine: its precision, and whether its network convolves.
        device: where it runs.
    """

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        self._needed = device.type == "cuda" and manifest.precision == "fp32"
        self._convolves = not isinstance(manifest.config, NPNetConfig)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Around a run.

        Convolutions are computed in TF32 unless PyTorch is told otherwise, so it is, for as long as the run
        takes; one thread at a time, as the setting is everybody's. Matrix products are only if somebody
        asked for it, who is told.

        Raises:
            BackendError: matrix products are set to TF32.
        """
        if not self._needed:
            yield
            return
        if products_in_tf32():
            raise BackendError(
                "this fp32 engine was checked with float32 products, and PyTorch is set to round those of "
                "matrices to TF32: call torch.set_float32_matmul_precision('highest'), or build the engine "
                "with --precision fp16, which is faster"
            )
        if not self._convolves:
            yield
            return
        cudnn = torch.backends.cudnn
        with (
            _convolutions,
            cudnn.flags(
                enabled=cudnn.enabled,
                benchmark=cudnn.benchmark,
                deterministic=cudnn.deterministic,
                allow_tf32=False,
            ),
        ):
            yield
