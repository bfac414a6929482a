"""What a run would be, without doing it."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from npnet_runtime.inputs.texts import Prompt, random_inputs
from npnet_training.pairs import PairDataset
from npnet_training.training.batch import TrainBatch
from npnet_training.training.factors import compute_factors, factor_bytes
from npnet_training.training.generator_lora import GeneratorLora
from npnet_training.training.measuring import golden_of
from npnet_training.training.networks import make_network, network_of
from npnet_training.training.objectives import make_loss
from npnet_training.training.settings import TrainSettings
from npnet_training.training.texts import texts_of


def estimate(settings: TrainSettings) -> str:
    """Pairs, steps, sizes, and a time measured on one batch; nothing is written.

    With `settings.gpu` the memory on a GPU that is not here instead, and no model is loaded.
    """
    if settings.gpu is not None:
        return _memory(settings, settings.gpu)
    pairs = PairDataset.open(settings.data, kept_only=settings.uses_target)
    info, size = pairs.info, min(settings.batch_size // settings.accumulation, len(pairs))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    texts = texts_of(settings, info)
    loss = make_loss(settings, info, torch.device(device))
    network = network_of(settings, pairs, texts, loss, torch.device(device))
    network.to(device)
    rows = pairs.batch(np.flatnonzero(pairs.groups == pairs.groups[0])[:size].tolist())
    source, target = rows.source.to(device), rows.target.to(device)
    prompt = Prompt(source.new_empty(len(source), 0, 0))
    if not isinstance(network, GeneratorLora):
        _, prompt = random_inputs(network.config, range(len(source)), device)
    factors = compute_factors(source) if settings.reads_factors else None
    batch = TrainBatch(source, target, prompt, factors, rows.prompts, rows.seeds)
    seconds = 0.0
    for _ in range(2):  # the first also warms up
        began = time.perf_counter()
        value = loss(golden_of(network, batch), batch)
        value.backward()
        float(value.detach())
        seconds = time.perf_counter() - began
    train = round(len(pairs) * (1 - settings.validation.share))
    steps = min(settings.epochs * (train // settings.batch_size), settings.max_steps or 2**63)
    cache = (
        len(pairs) * factor_bytes(info.latent_shape) if settings.reads_factors and settings.cache_svd else 0
    )
    cache += len(set(pairs.prompts)) * sum(math.prod(shape) for shape in texts.shapes.values()) * 4
    weights = sum(parameter.numel() for parameter in network.parameters())
    minutes = steps * settings.accumulation * seconds / 60
    return (
        f"{len(pairs)} pairs of {info.model}, about {train} to train on; "
        f"{steps} steps of {settings.batch_size}; "
        f"a network of {weights / 1e6:.1f} million weights; at most {cache / 1e6:.0f} MB of cache in "
        f"{settings.cache_dir}; about {minutes:.1f} minutes on one {device} like this, "
        f"by one batch of {size}; nothing was written"
    )


def _memory(settings: TrainSettings, name: str) -> str:
    from npnet_training.planning.estimates import Rendering, describe_memory, plan_memory
    from npnet_training.planning.gpus import get_gpu
    from npnet_training.planning.parts import parts_of

    pairs = PairDataset.open(settings.data, kept_only=settings.uses_target)
    info, gpu = pairs.info, get_gpu(name)
    sampler = settings.reward if settings.loss == "reward" else settings.image
    how = Rendering(
        sampler.steps, sampler.guidance, sampler.gradient_steps, sampler.checkpointing,
        2 if sampler.dtype == "bfloat16" else 4,
    )  # fmt: skip
    found = []
    for model in settings.model or (info.model,):
        parts = parts_of(model, offline=settings.offline)
        rank, trained = settings.network.generator_lora.rank if settings.trains_lora else 0, 0
        if not rank:
            network = make_network(settings, info, pairs.shapes, texts_of(settings, info).shapes)
            trained = sum(parameter.numel() for parameter in network.parameters())
        batch = settings.batch_size // settings.accumulation
        found.append(describe_memory(plan_memory(parts, how, batch, gpu, trained, rank), parts))
    return "\n".join(found)
