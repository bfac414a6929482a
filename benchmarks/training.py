"""Training steps a second: this project's step against the public recipe's, side by side in one run.

    python benchmarks/training.py --model sdxl --batch 4

The public recipe computes the SVD of every noise in every step, runs the published network in eager float32,
and gives the prompt of a batch's first sample to all of it. Here every sample has its own prompt and the
factors come from the cache on disk that `npnet-train` keeps. The public loop also encodes that prompt in
every step, with the pipeline's text encoders; `npnet-train` encodes each prompt once, ahead. Both ratios are
given for SDXL: to the public step without encoding, and to the whole of it. An encoding is one prompt
whatever the batch, so the larger the batch, the less it counts. Before anything is timed all take the same
steps with the same prompts and factors; if their losses differ, nothing is reported. Beside the time that
passed stands the processor time of the step, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn

from baseline import PublishedNPNet
from harness import environment, interleave, write_json
from npnet_kernels import SVD
from npnet_runtime.devices import resolve_device
from npnet_runtime.networks.npnet_config import NPNetConfig
from npnet_runtime.networks.prompt_attention import PromptAttentionConfig, default_channels
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import Network, network_for
from npnet_runtime.weights.models import MODELS, get_model
from npnet_training.training.factors import compute_factors
from npnet_training.training.networks import autocast_products
from text_encoders import TextEncoders

STEPS = 3
PUBLIC = "public recipe"
WHOLE = "public recipe, its prompt encoded"
SDXL_TEXT = (77, 2048)
# Losses of order 1 after a few steps of float32, whose sums over the text are taken in two orders.
TOLERANCE = 1e-4
# Of a loss of bfloat16 products, as a share of it where it is above 1: a product's factors are rounded to
# 8 bits, by up to 2e-3 each. It must show that the same is learned, not that bits agree.
BF16_TOLERANCE = 1e-2


def main() -> int:
    """Run the benchmark; 1 if losses disagree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="sdxl")
    parser.add_argument("--batch", type=int, default=4, help="pairs in a step; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each; default: %(default)s")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="a compiled network as well, which takes minutes; always on CUDA",
    )
    parser.add_argument("--device", help="default: CUDA if there is any")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    config, device = get_model(options.model).config, resolve_device(options.device)
    if not isinstance(config, NPNetConfig):
        parser.error(f"--model {options.model}: a network of another kind than the published one")
    compiled = options.compile or device.type == "cuda"
    content = run(config, options.batch, options.rounds, device, compiled=compiled)
    if "rows" not in content:
        print(f"nothing is reported: losses differ: {content['parity']}", file=sys.stderr)
        return 1
    content = {"model": options.model, **content, "environment": environment(device)}
    write_json(options.output / f"training-{options.model}-{device.type}-batch{options.batch}.json", content)
    table = Table(
        Column("step", no_wrap=True), "ms", "p90", "pairs/s to public", "by processor", "to its whole step"
    )
    table.title = f"{options.model}, {device}, batch {options.batch}"
    for row in content["rows"]:
        milliseconds = [f"{row[key]:.0f}" for key in ("median_ms", "p90_ms")]
        keys = ("ratio", "processor_ratio", "ratio_to_whole")
        ratios = ["-" if row[key] is None else f"{row[key]:.2f}" for key in keys]
        table.add_row(row["name"], *(milliseconds if device.type == "cuda" else ("-", "-")), *ratios)
    Console().print(table)
    return 0


def run(
    config: NPNetConfig, batch: int, rounds: int, device: torch.device, *, compiled: bool = False
) -> dict[str, Any]:
    """Compare losses, then time a step of each.

    Args:
        config: of the published network.
        batch: pairs in a step.
        rounds: timed steps of each.
        device: where.
        compiled: time a compiled network of bfloat16 products as well.

    Returns:
        `parity` of the losses, and, if they agree, `rows` with times and ratios of pairs a second.
    """
    torch.manual_seed(0)
    source = torch.randn(batch, *config.latent_shape, device=device)
    target = source + 0.1 * torch.randn_like(source)
    prompts = torch.randn(batch, *config.text_shape, device=device)
    state = random_state(config, 0)
    factors = compute_factors(source)
    first = prompts[:1].expand_as(prompts)
    public = _public(config, state, device)
    ours = {"npnet": _ours(config, state, device), "npnet, bf16": _ours(config, state, device, bf16=True)}
    if compiled:
        ours["npnet, bf16, compiled"] = _ours(config, state, device, bf16=True, compiled=True)

    def losses(trained: Trained) -> list[float]:
        return [_step(*trained, source, first, factors, target) for _ in range(STEPS)]

    expected = losses(public)
    parity = {name: _compare(losses(trained), expected, "bf16" in name) for name, trained in ours.items()}
    if not all(row["agrees"] for row in parity.values()):
        return {"parity": {PUBLIC: expected, **parity}}
    attention = PromptAttentionConfig(
        *config.latent_shape, *config.text_shape, channels=default_channels(*config.latent_shape[1:])
    )
    other = _trainable(network_for(attention), device, fused=True)
    with tempfile.TemporaryDirectory() as folder:
        cache = _cache(factors, Path(folder))

        def step(trained: Trained) -> Callable[[], object]:
            return lambda: _step(*trained, source, prompts, cache(device), target)

        calls: dict[str, Callable[[], object]] = {name: step(trained) for name, trained in ours.items()}
        calls["prompt-attention"] = lambda: _step(*other, source, prompts, None, target)
        calls[PUBLIC] = lambda: _step(*public, source, first, None, target)
        if config.text_shape == SDXL_TEXT:
            encoders = TextEncoders(device)

            def whole() -> None:
                encoded = encoders().expand_as(prompts)
                _step(*public, source, encoded, None, target)

            calls[WHOLE] = whole
        processor: dict[str, list[float]] = {name: [] for name in calls}
        watched = {name: _watched(call, processor[name]) for name, call in calls.items()}
        times = interleave(watched, rounds, device, warmup=1)
    used = {name: statistics.median(values[1:]) for name, values in processor.items()}
    rows = [
        {
            "name": name,
            "median_ms": timing.median,
            "p90_ms": timing.p90,
            "ratio": times[PUBLIC].median / timing.median,
            "ratio_to_whole": times[WHOLE].median / timing.median if WHOLE in times else None,
            "processor_ms": 1e3 * used[name],
            "processor_ratio": used[PUBLIC] / used[name],
        }
        for name, timing in times.items()
    ]
    return {"batch": batch, "rounds": rounds, "parity": {PUBLIC: expected, **parity}, "rows": rows}


def _compare(losses: list[float], expected: list[float], bf16: bool) -> dict[str, Any]:
    tolerance = BF16_TOLERANCE if bf16 else TOLERANCE
    pairs = list(zip(losses, expected, strict=True))
    error = max(abs(loss - right) / (max(1.0, right) if bf16 else 1.0) for loss, right in pairs)
    return {"losses": losses, "error": error, "tolerance": tolerance, "agrees": error <= tolerance}


def _watched(call: Callable[[], object], seconds: list[float]) -> Callable[[], None]:
    """The call, noting the processor time that this process spends in it, on all of its threads."""

    def run() -> None:
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)

    return run


Trained = tuple[nn.Module, torch.optim.Optimizer]


def _public(config: NPNetConfig, state: dict[str, Tensor], device: torch.device) -> Trained:
    return _trainable(PublishedNPNet(config, state), device, fused=False)


def _trainable(network: nn.Module, device: torch.device, *, fused: bool) -> Trained:
    """The network, and AdamW: `fused` as `npnet-train` makes it, or PyTorch's choice."""
    network = network.to(device).requires_grad_(True).train()
    return network, torch.optim.AdamW(network.parameters(), 1e-4, fused=fused or None)


def _ours(
    config: NPNetConfig,
    state: dict[str, Tensor],
    device: torch.device,
    *,
    bf16: bool = False,
    compiled: bool = False,
) -> Trained:
    network: Network = network_for(config)
    network.load_state_dict(state)
    if bf16:
        autocast_products(network, device.type)
    trained = _trainable(network, device, fused=True)
    if compiled:
        network.compile()
    return trained


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    source: Tensor,
    prompts: Tensor,
    factors: SVD | None,
    target: Tensor,
) -> float:
    loss = F.mse_loss(network(source, prompts, factors), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def _cache(factors: SVD, folder: Path) -> Callable[[torch.device], SVD]:
    """Factors as a step reads them: from a memory map."""
    for name, part in factors._asdict().items():
        np.save(folder / f"{name}.npy", part.cpu().numpy())

    def read(device: torch.device) -> SVD:
        maps = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in SVD._fields)
        return SVD(*(torch.from_numpy(np.array(part)).to(device) for part in maps))

    return read


if __name__ == "__main__":
    sys.exit(main())
