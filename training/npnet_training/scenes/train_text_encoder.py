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
from npnet_training.shapes.train_text_encoder import LayoutHead, tokenize


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
    parameters = [*encoder.parameters(), *pooled.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.1)
    for step in range(steps):
        rows = rows_of(step, len(scenes.prompts), batch, seed)
        states = encoder(ids[rows]).last_hidden_state
        loss = F.mse_loss(heads[0](states), targets[rows])
        loss = loss + F.mse_loss(heads[1](states.mean(1)), counts[rows])
        loss = loss + F.mse_loss(heads[2](pooled(ids[rows]).pooler_output), counts[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report("text encoders", step, loss.item())
    return encoder.eval(), pooled.eval()
