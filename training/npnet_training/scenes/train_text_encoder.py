"""Train both text encoders before the denoiser: to predict from the prompt what is where, and how often."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npnet_training.scenes.networks import (
    POOLED,
    WIDTH,
    make_pooled_encoder,
    make_text_encoder,
    make_tokenizer,
)
from npnet_training.shapes.data import Scenes, rows_of
from npnet_training.shapes.train_autoencoder import Report
from npnet_training.shapes.train_text_encoder import LayoutHead, fit, tokenize


def train_text_encoders(
    scenes: Scenes, counts: Tensor, steps: int, batch: int, rate: float, seed: int, report: Report
) -> tuple[Any, Any]:
    """A T5 whose token states tell the layout and what there is; a CLIP whose pooled state tells the latter.

    Args:
        scenes: square ones, to learn from.
        counts: (N, 24), how often each thing is in them.
        steps: of AdamW, with a one-cycle learning rate.
        batch: prompts a step.
        rate: highest learning rate.
        seed: of weights and order.
        report: called with stage, step and loss.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    targets, device = scenes.layouts, scenes.layouts.device
    encoder, pooled = (
        make_text_encoder(tokenizer).to(device).train(),
        make_pooled_encoder(tokenizer).to(device).train(),
    )
    heads = nn.ModuleList(
        [
            LayoutHead(targets.shape[1], WIDTH),
            nn.Linear(WIDTH, counts.shape[1]),
            nn.Linear(POOLED, counts.shape[1]),
        ]
    ).to(device)
    ids = tokenize(tokenizer, scenes.prompts).to(device)

    def loss(rows: Tensor) -> Tensor:
        states = encoder(ids[rows]).last_hidden_state
        found = F.mse_loss(heads[0](states), targets[rows])
        found = found + F.mse_loss(heads[1](states.mean(1)), counts[rows])
        return found + F.mse_loss(heads[2](pooled(ids[rows]).pooler_output), counts[rows])

    parameters = [*encoder.parameters(), *pooled.parameters(), *heads.parameters()]
    batches = (rows_of(step, len(scenes.prompts), batch, seed) for step in range(steps))
    fit(parameters, map(loss, batches), steps, rate, lambda step, loss: report("text encoders", step, loss))
    return encoder.eval(), pooled.eval()
