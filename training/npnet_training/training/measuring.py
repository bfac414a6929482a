"""Errors of a network in training, over pairs that are shared out among its processes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from npnet_runtime.golden_statistics import STATISTICS, golden_statistics
from npnet_runtime.inputs.texts import fields_read
from npnet_training.training.batch import TrainBatch
from npnet_training.training.generator_lora import GeneratorLora
from npnet_training.training.losses import Loss, target_of


def golden_of(network: nn.Module, batch: TrainBatch) -> Tensor:
    """A network's golden noise of a batch, (B, C, H, W), from what it reads of the prompts."""
    inner = extract_model_from_parallel(network)
    golden: Tensor
    if isinstance(inner, GeneratorLora):
        golden = network(batch.source, tuple(batch.prompts))
        return golden
    names = fields_read(inner.config)
    others = {name: tensor for name, tensor in batch.prompt.others.items() if name in names}
    golden = network(batch.source, batch.prompt.embeds, batch.factors, **others)
    return golden


@torch.no_grad()
def measure(
    accelerator: Accelerator, network: nn.Module, batches: Iterable[TrainBatch], loss: Loss | None
) -> dict[str, float]:
    """Mean squared errors of the identity map and of the network, and its loss.

    Every process must call it.

    Args:
        accelerator: of the run.
        network: as prepared for training; it is left in evaluation mode.
        batches: this process's share of the pairs.
        loss: to measure as well.

    Returns:
        `identity` and `mse`, of one number of the noise; `explained`, the share of the target change that the
        network explains; `STATISTICS` of golden noise; `loss`, of a pair, if it is asked for.
    """
    network.eval()
    sums = torch.zeros(5 + len(STATISTICS), dtype=torch.float64, device=accelerator.device)
    for batch in batches:
        target, golden = target_of(batch), golden_of(network, batch)
        sums[0] += (target - batch.source).double().square().sum()
        sums[1] += (target - golden.float()).double().square().sum()
        sums[2] += target.numel()
        sums[4] += len(batch)
        if loss is not None:
            sums[3] += len(batch) * loss(golden, batch).double()
        looks = golden_statistics(golden.float(), batch.source)
        sums[5:] += len(batch) * sums.new_tensor([looks[name] for name in STATISTICS])
    identity, ours, count, total, pairs, *looked = accelerator.reduce(sums, "sum").tolist()
    found = {
        "identity": identity / count,
        "mse": ours / count,
        "explained": 1 - ours / identity if identity else 0.0,
    }
    found |= {name: value / pairs for name, value in zip(STATISTICS, looked, strict=True)}
    return found | {"loss": total / pairs} if loss is not None else found
