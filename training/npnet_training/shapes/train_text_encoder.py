"""Train the text encoder before the denoiser: to predict from the prompt what is where.

Trained together with the denoiser from nothing, a text encoder forgets the order of words: at the noisy end
of Stable Diffusion's schedule the latents already reveal the layout, so order is worth almost no loss. What
is not predicted is not learned either: from colours alone, embeddings of prompts that differ in a shape
differ by 5 %, and the denoiser draws blots. The background, which no prompt tells, is left out: it would have
most of the variance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npnet_training.shapes.data import LAYOUT_SIDE, Scenes, rows_of
from npnet_training.shapes.networks import WIDTH, make_text_encoder, make_tokenizer
from npnet_training.shapes.train_autoencoder import Report


class LayoutHead(nn.Module):
    """8x8 learned positions that attend to the prompt's tokens and predict what is there; thrown away."""

    def __init__(self, channels: int, width: int = WIDTH) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(LAYOUT_SIDE**2, width) * 0.5)
        layer = nn.TransformerDecoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.out = nn.Linear(width, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, width) to (B, channels, 8, 8)."""
        states = self.decoder(self.positions.expand(len(tokens), -1, -1), tokens)
        return self.out(states).transpose(1, 2).unflatten(2, (LAYOUT_SIDE, LAYOUT_SIDE))


def train_text_encoder(
    scenes: Scenes, steps: int, batch: int, rate: float, seed: int, report: Report
) -> tuple[Any, Any]:
    """A text encoder whose token states tell the layout.

    Args:
        scenes: images and prompts to learn from.
        steps: of AdamW, with a one-cycle learning rate.
        batch: prompts a step.
        rate: highest learning rate.
        seed: of weights and order.
        report: called with stage, step and loss.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    targets = scenes.layouts
    encoder = make_text_encoder(tokenizer).to(targets.device).train()
    head = LayoutHead(targets.shape[1]).to(targets.device)
    ids = tokenize(tokenizer, scenes.prompts).to(targets.device)

    def loss(rows: Tensor) -> Tensor:
        return F.mse_loss(head(encoder(ids[rows]).last_hidden_state), targets[rows])

    parameters = [*encoder.parameters(), *head.parameters()]
    batches = (rows_of(step, len(scenes.prompts), batch, seed) for step in range(steps))
    fit(parameters, map(loss, batches), steps, rate, lambda step, loss: report("text encoder", step, loss))
    return tokenizer, encoder.eval()


def fit(
    parameters: list[nn.Parameter],
    losses: Iterator[Tensor],
    steps: int,
    rate: float,
    report: Callable[[int, float], None],
) -> None:
    """Minimise the losses of so many steps by AdamW, with a one-cycle learning rate."""
    optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.1)
    for step, loss in enumerate(losses):
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report(step, loss.item())


def tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    """(N, 16) token numbers, padded as the pipeline pads them."""
    ids: Tensor = tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids
