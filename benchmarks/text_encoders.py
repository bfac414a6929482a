"""SDXL's two text encoders, as the public training loop runs them on a prompt in every step.

Their sizes are those of stabilityai/stable-diffusion-xl-base-1.0; their weights are random, which takes the
same time. Tokenising is left out. Without guidance's empty prompt: that pipeline gives zeros for it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

TOKENS = 77
LARGE = CLIPTextConfig(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
    hidden_act="quick_gelu", projection_dim=768,
)  # fmt: skip
BIG_G = CLIPTextConfig(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
    hidden_act="gelu", projection_dim=1280,
)  # fmt: skip


class TextEncoders:
    """Both encoders on a device: float16 on CUDA, as the public loop has them, float32 on a CPU.

    Args:
        device: where they run.
        configs: of the two.
    """

    def __init__(
        self, device: torch.device, configs: tuple[CLIPTextConfig, CLIPTextConfig] = (LARGE, BIG_G)
    ) -> None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        large, big_g = configs
        with device:
            models: tuple[nn.Module, ...] = (CLIPTextModel(large), CLIPTextModelWithProjection(big_g))
        self.encoders = [model.to(dtype).eval() for model in models]
        self.ids = torch.randint(0, min(config.vocab_size for config in configs), (1, TOKENS), device=device)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Embeddings of one prompt (1, 77, 2048) float32: the last hidden states but one, side by side."""
        found = [encoder(self.ids, output_hidden_states=True).hidden_states[-2] for encoder in self.encoders]
        return torch.cat(found, dim=-1).float()
