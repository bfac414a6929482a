"""What an integration asks of golden noise: so much of `GoldenNoise`, and nothing of the class itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.hot_path.prepared import PreparedNoise
from npnet_runtime.inputs.texts import Prompt

GivenLatents = Literal["golden", "as-is"]
"""What becomes of noise that the caller of a pipeline passes as `latents`."""


class Golden(Protocol):
    """An engine that makes noise golden; see `npnet_runtime.GoldenNoise`, which is one."""

    bundle: EngineBundle
    device: torch.device

    def __call__(self, noise: Tensor | PreparedNoise, prompt_embeds: Tensor | Prompt) -> Tensor:
        """Golden noise (B, C, H, W) of noise and the embeddings of its prompts."""

    def encode(self, prompts: Sequence[str]) -> Prompt:
        """Prompts by the text encoder of the network's own."""

    def prepare(self, noise: Tensor) -> PreparedNoise:
        """Do the work that needs no prompt."""

    def shares_engine(self, other: object) -> bool:
        """Whether both are one loaded engine."""

    def check_shapes(self, noise: tuple[int, ...], prompt_embeds: Tensor | Prompt) -> None:
        """Check the noise's shape and the prompt of a call ahead of it."""
