"""Whether calls are replayed from CUDA graphs: a pure function that can say why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npnet_runtime.errors import BackendError


@dataclass(frozen=True)
class GraphChoice:
    """Whether CUDA graphs are used, and why."""

    captured: bool
    reason: str

    def __str__(self) -> str:
        return f"CUDA graphs: {'on' if self.captured else 'off'}: {self.reason}"


# While torch before this release captures, random numbers drawn on the device by another thread raise.
QUIET_CAPTURE = (2, 13)


def choose_graphs(
    asked: bool | None,
    device: str,
    obstacles: tuple[str | None, ...],
    torch_version: str = torch.__version__,
) -> GraphChoice:
    """Decide on CUDA graphs.

    Args:
        asked: True for graphs or an error, False for none, None for graphs wherever they can be had.
        device: `cpu` or `cuda`.
        obstacles: why the parts of a call cannot be captured; None for each that can.
        torch_version: before 2.13 graphs have to be asked for.

    Raises:
        BackendError: graphs were asked for, and cannot be had.
    """
    if asked is False:
        return GraphChoice(False, "cuda_graphs=False was asked for")
    found = [obstacle for obstacle in obstacles if obstacle]
    if device != "cuda":
        found = [f"the engine runs on the {device}"]
    if not found and asked is None and _release(torch_version) < QUIET_CAPTURE:
        return GraphChoice(
            False,
            f"while torch {torch_version} captures, random numbers of other threads raise: torch>=2.13, or "
            f"cuda_graphs=True and warm_up() before there are other threads",
        )
    if not found:
        return GraphChoice(True, "every part of a call can be captured; cuda_graphs=False turns them off")
    if asked:
        raise BackendError(
            f"cuda_graphs: expected an engine that CUDA graphs can hold, given one that they cannot: "
            f"{'; '.join(found)}. Leave cuda_graphs out, or pass cuda_graphs=False"
        )
    return GraphChoice(False, "; ".join(found))


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
