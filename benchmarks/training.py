"""Training steps a second: this project's step against the public recipe's, side by side in one run.

    python benchmarks/training.py --model sdxl --batch 4

The public recipe computes the SVD of every noise in every step, runs the published network in eager float32,
and gives the prompt of a batch's first sample to all of it. Here every sample has its own prompt and the
factors come from the cache on disk that `npnet-train` keeps. Encoding prompts is in neither: here it is done
once, there in every step, so the ratio is a lower bound. Before anything is timed both take the same steps
with the same prompts and factors; if their losses differ, nothing is reported.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from baseline import PublishedNPNet
from harness import environment, interleave, write_json
from npnet_kernels import SVD
from npnet_runtime.config import NPNetConfig
from npnet_runtime.golden import resolve_device
from npnet_runtime.models import MODELS, get_model
from npnet_runtime.networks import Network, network_for
from npnet_runtime.prompt_attention import PromptAttentionConfig, default_channels
from npnet_runtime.random_weights import random_state
from npnet_training.training.factors import compute_factors
from npnet_training.training.networks import autocast_products

# Losses of order 1 after a few steps of float32, whose sums over the text are taken in two orders.
STEPS, TOLERANCE = 3, 1e-4


def main() -> int:
    """Run the benchmark; 1 if the losses of both disagree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="sdxl")
    parser.add_argument("--batch", type=int, default=4, help="pairs in a step; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each; default: %(default)s")
    parser.add_argument("--device", help="default: CUDA if there is any")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    config, device = get_model(options.model).config, resolve_device(options.device)
    if not isinstance(config, NPNetConfig):
        parser.error(f"--model {options.model}: a network of another kind than the published one")
    content = run(config, options.batch, options.rounds, device)
    if not content["parity"]["agrees"]:
        print(f"nothing is reported: losses differ: {content['parity']}", file=sys.stderr)
        return 1
    content = {"model": options.model, **content, "environment": environment(device)}
    write_json(options.output / f"training-{options.model}-{device.type}.json", content)
    table = Table("step", "ms, median", "p90", "pairs/s to public", title=f"{options.model}, {device}")
    for row in content["rows"]:
        milliseconds = [f"{row[key]:.0f}" for key in ("median_ms", "p90_ms")]
        table.add_row(
            row["name"], *(milliseconds if device.type == "cuda" else ("-", "-")), f"{row['ratio']:.2f}"
        )
    Console().print(table)
    return 0


def run(config: NPNetConfig, batch: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Compare losses, then time a step of each.

    Args:
        config: of the published network.
        batch: pairs in a step.
        rounds: timed steps of each.
        device: where.

    Returns:
        `parity` of the losses, and `rows` with times and ratios of pairs a second.
    """
    torch.manual_seed(0)
    source = torch.randn(batch, *config.latent_shape, device=device)
    target = source + 0.1 * torch.randn_like(source)
    prompts = torch.randn(batch, *config.text_shape, device=device)
    state = random_state(config, 0)
    factors = compute_factors(source)
    first = prompts[:1].expand_as(prompts)
    public, ours = _trainable(PublishedNPNet(config, state), device), _ours(config, state, device)
    losses = [
        [_step(network, optimizer, source, first, factors, target) for _ in range(STEPS)]
        for network, optimizer in (public, ours)
    ]
    error = max(abs(a - b) for a, b in zip(*losses, strict=True))
    parity = {"losses": losses, "max_abs": error, "tolerance": TOLERANCE, "agrees": error <= TOLERANCE}
    if not parity["agrees"]:
        return {"parity": parity}
    attention = PromptAttentionConfig(
        *config.latent_shape, *config.text_shape, channels=default_channels(*config.latent_shape[1:])
    )
    contenders = {"npnet": ours, "prompt-attention": _trainable(network_for(attention), device)}
    if device.type == "cuda":
        contenders |= {"npnet, bf16": _ours(config, state, device, bf16=True)}
        contenders |= {"npnet, bf16, compiled": _ours(config, state, device, bf16=True, compiled=True)}
    with tempfile.TemporaryDirectory() as folder:
        cache = _cache(factors, Path(folder))

        def step(name: str) -> Callable[[], object]:
            network, optimizer = contenders[name]
            reads = isinstance(network, nn.Module) and name.startswith("npnet")
            return lambda: _step(
                network, optimizer, source, prompts, cache(device) if reads else None, target
            )

        calls: dict[str, Callable[[], object]] = {name: step(name) for name in contenders}
        calls["public recipe"] = lambda: _step(*public, source, first, None, target)
        times = interleave(calls, rounds, device, warmup=1)
    base = times["public recipe"].median
    rows = [
        {"name": name, "median_ms": time.median, "p90_ms": time.p90, "ratio": base / time.median}
        for name, time in times.items()
    ]
    return {"batch": batch, "rounds": rounds, "parity": parity, "rows": rows}


Trained = tuple[nn.Module, torch.optim.Optimizer]


def _trainable(network: nn.Module, device: torch.device) -> Trained:
    network = network.to(device).requires_grad_(True).train()
    return network, torch.optim.AdamW(network.parameters(), 1e-4)


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
    trained = _trainable(network, device)
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
