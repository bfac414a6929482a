"""`--engine auto`: which kind of engine to write for a device, by what is installed and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from npnet_export.needs import missing
from npnet_runtime.backends.machine import is_intel
from npnet_runtime.backends.openvino_backend import devices

AUTO = "auto"


@dataclass(frozen=True)
class EngineChoice:
    """The kind of engine and the precision chosen, and why."""

    engine: str
    precision: str
    reason: str

    def __str__(self) -> str:
        return f"--engine auto: {self.engine} in {self.precision}: {self.reason}"


def choose_engine(
    device: str,
    precision: str | None,
    lacking: Mapping[str, str | None],
    *,
    intel: bool = False,
    bfloat16: bool = False,
) -> EngineChoice:
    """Pick a kind of engine.

    Args:
        device: type of the device it will run on.
        precision: asked for, or None.
        lacking: for each kind of engine, what is not there to write and run it; None if all is.
        intel: the CPU is one of Intel's.
        bfloat16: OpenVINO says that the CPU computes in bfloat16.
    """
    own = precision or "fp32"
    if device == "cuda":
        return EngineChoice("torch", own, "the kernels of this package, and nothing else to install")
    passed = [f"no {name} ({why})" for name in ("openvino", "onnxruntime") if (why := lacking[name])]
    aside = f"; {', '.join(passed)}" if passed else ""
    if not lacking["openvino"] and bfloat16 and precision in (None, "bf16"):
        return EngineChoice(
            "openvino", "bf16", "this CPU multiplies in bfloat16, twice as fast as in float32"
        )
    if not lacking["openvino"] and intel and own == "fp32":
        return EngineChoice("openvino", own, "the fastest that was measured on a CPU of Intel's")
    if own == "bf16":
        return EngineChoice("torch", own, f"ONNX Runtime has no bfloat16 on a CPU{aside}")
    if not lacking["onnxruntime"]:
        return EngineChoice("onnxruntime", own, f"the fastest that was measured on this kind of CPU{aside}")
    if not lacking["aoti"]:
        return EngineChoice("aoti", own, f"compiled for this CPU{aside}")
    return EngineChoice("torch", own, f"it needs nothing but PyTorch{aside}; no aoti ({lacking['aoti']})")


def choose_engine_here(device: torch.device, precision: str | None) -> EngineChoice:
    """`choose_engine` for this machine."""
    lacking = {name: missing(name) for name in ("openvino", "onnxruntime", "aoti")}
    found = {} if lacking["openvino"] else devices()
    return choose_engine(
        device.type,
        precision,
        lacking,
        intel=is_intel(),
        bfloat16="BF16" in found.get("CPU", ()),
    )
