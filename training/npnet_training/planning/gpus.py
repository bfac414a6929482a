"""GPUs by name: their memory, and the peak of their matrix products, as their makers state them."""

from __future__ import annotations

from dataclasses import dataclass

from npnet_training.errors import SettingsError

UTILISATION = 0.4
"""Share of the peak that is assumed to be reached; measured on no GPU by this project."""


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Args:
        name: for `--gpu`.
        memory: GiB.
        peak: TFLOP/s of dense bfloat16 products with float32 sums.
    """

    name: str
    memory: float
    peak: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("rtx3090", 24, 71),
        Gpu("rtx4090", 24, 165),
        Gpu("rtx5090", 32, 210),
        Gpu("l40s", 48, 362),
        Gpu("a100-40", 40, 312),
        Gpu("a100", 80, 312),
        Gpu("h100", 80, 989),
        Gpu("h200", 141, 989),
        Gpu("b200", 180, 2250),
    )
}


def get_gpu(name: str) -> Gpu:
    """One of them.

    Raises:
        SettingsError: none of that name.
    """
    if name not in GPUS:
        raise SettingsError(f"--gpu {name}: expected one of {', '.join(GPUS)}")
    return GPUS[name]
