"""The critical path: noise prepared while the prompt is being encoded, golden noise once it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from npnet_runtime import GoldenNoise
from npnet_runtime.integrations.diffusers.ahead import Ahead

_TOKENS, _WIDTH = 77, 1280  # of SDXL's larger text encoder
_LAYERS = {"cuda": 32, "cpu": 1}  # all of them where they take milliseconds


class Encoder:
    """A stand-in for the text encoders: layers of that size with random weights, on the current stream.

    Args:
        batch: number of prompts.
        device: where it runs.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self._device = device
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        layer = torch.nn.TransformerEncoderLayer(
            _WIDTH, 20, 4 * _WIDTH, activation="gelu", batch_first=True, device=device, dtype=dtype
        )
        self._layer = layer.requires_grad_(False).eval()
        self._tokens = torch.randn(batch, _TOKENS, _WIDTH, device=device, dtype=dtype)

    @staticmethod
    def describe(device: torch.device) -> str:
        """What it is, for the record of a run."""
        return f"{_LAYERS[device.type]} transformer layers, {_TOKENS} tokens, {_WIDTH} wide"

    def __call__(self) -> None:
        """Encode, and wait for the result; other streams go on."""
        hidden = self._tokens
        for _ in range(_LAYERS[self._device.type]):  # one layer's weights: the time is that of as many
            hidden = self._layer(hidden)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


class Overlap:
    """One request after another, as an attached pipeline serves them.

    Args:
        golden: the engine.
        noise: (B, C, H, W), known before the prompt.
        prompts: (B, tokens, width), what the encoder would give.
        encoder: what runs in between.
    """

    def __init__(self, golden: GoldenNoise, noise: Tensor, prompts: Tensor, encoder: Encoder) -> None:
        self._golden, self._noise, self._prompts, self._encoder = golden, noise, prompts, encoder
        self._worker = ThreadPoolExecutor(1)
        self._ahead: Ahead | None = None

    def begin(self) -> None:
        """The noise is known: prepare it, and encode the prompt beside it."""
        self._ahead = Ahead(self._golden, self._noise, self._worker)
        self._encoder()

    def finish(self) -> Tensor:
        """The prompt is ready: golden noise, whatever is left to do."""
        if self._ahead is None:
            raise RuntimeError("expected begin() before finish()")
        return self._golden(self._ahead.result(), self._prompts)

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown()
