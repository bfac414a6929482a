"""What golden noise adds to a whole pipeline: plain and attached calls of SDXL, in turns.

    python benchmarks/pipeline_overhead.py --output results      SDXL at full size, random weights, on a GPU
    python benchmarks/pipeline_overhead.py --size small          the same on any CPU, to see it run

A pair of calls, plain and attached, is timed together, the one or the other first by turns; what is reported
is the median of the differences within the pairs, and their quartiles. The decoder is left out
(`output_type="latent"`), so that the shares are of text encoding and denoising alone. Nothing is reported
unless the attached call starts from `golden(noise, prompt_embeds)`, bit for bit.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from baseline import PublishedNPNet
from harness import environment, interleave, synchronize, write_json
from npnet_export import ExportSettings, export
from npnet_export.weights import WeightsRequest
from npnet_runtime import GoldenNoise
from npnet_runtime.devices import resolve_device
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import network_from_state
from npnet_runtime.weights import checkpoint
from pipeline_models import SIZES, random_sdxl

PROMPT = "a banana on the left of an apple"
PUBLISHED_SHARE = 0.03  # what the paper reports


def main() -> int:
    """Run the benchmark; 1 if the attached pipeline does not start from golden noise."""
    options = _options()
    device = resolve_device(options.device)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    config = SIZES[options.size][1]
    pipe = random_sdxl(options.size, device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        network = network_from_state(config, random_state(config, 0))
        weights = Path(folder) / "weights.safetensors"
        checkpoint.write(weights, network.state_dict(), config)
        request = WeightsRequest(None, str(weights))
        precision = "fp32" if device.type == "cpu" else "fp16"
        engine = ExportSettings(
            request, Path(folder) / "engine", "sdxl", options.engine, precision, device=str(device)
        )
        golden = GoldenNoise(export(engine), device=device)
    published = PublishedNPNet(config, network.state_dict()).to(device)
    if not starts_from_golden_noise(pipe, golden):
        print("the attached pipeline does not start from golden noise: nothing is reported", file=sys.stderr)
        return 1
    parts = _parts(pipe, golden, published, options.rounds, device)
    rows = [_row(pipe, golden, steps, options.rounds, device) for steps in options.steps]
    for row in rows:
        row["published_share"] = parts["published, eager float32"] / row["plain_ms"]
    _print(parts, rows)
    if options.output:
        result = {
            "what": "what golden noise adds to SDXL, milliseconds and shares",
            "command": "python benchmarks/pipeline_overhead.py " + " ".join(sys.argv[1:]),
            "size": options.size,
            "weights": "random",
            "engine": f"{options.engine} {precision}",
            "environment": environment(device),
            "rounds": options.rounds,
            "parts_ms": parts,
            "rows": rows,
        }
        write_json(options.output / f"pipeline-overhead-{options.size}-{device.type}.json", result)
    return 0


def starts_from_golden_noise(pipe: Any, golden: GoldenNoise) -> bool:
    """Whether an attached call gives what the plain one gives from `golden(noise, prompt_embeds)`."""
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (1, *golden.bundle.manifest.config.latent_shape)
    noise = torch.randn(shape, generator=generator, dtype=pipe.unet.dtype).to(golden.device)
    prompt_embeds = pipe.encode_prompt(PROMPT, device=golden.device)[0]
    seen: list[torch.Tensor] = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone()), prepend=True
    )
    try:
        _call(pipe, 1, latents=golden(noise, prompt_embeds))
        golden.attach(pipe)
        _call(pipe, 1, generator=torch.Generator("cpu").manual_seed(0))
    finally:
        hook.remove()
        golden.detach(pipe)
    return len(seen) == 2 and torch.equal(*seen)


def _call(pipe: Any, steps: int, **options: Any) -> None:
    pipe(PROMPT, num_inference_steps=steps, output_type="latent", **options)


def _parts(
    pipe: Any, golden: GoldenNoise, published: PublishedNPNet, rounds: int, device: torch.device
) -> dict[str, float]:
    prompt_embeds = pipe.encode_prompt(PROMPT, device=device)[0]
    shape = (1, *golden.bundle.manifest.config.latent_shape)
    noise = torch.randn(shape, device=device, dtype=prompt_embeds.dtype)
    prepared = golden.prepare(noise)

    @torch.inference_mode()
    def publish() -> torch.Tensor:
        return published(noise.float(), prompt_embeds.float())

    @torch.inference_mode()
    def encode() -> Any:
        return pipe.encode_prompt(PROMPT, device=device)

    calls: dict[str, Callable[[], object]] = {
        "text encoding": encode,
        "golden noise": lambda: golden(noise, prompt_embeds),
        "golden noise, spectral half done": lambda: golden(prepared, prompt_embeds),
        "published, eager float32": publish,
    }
    return {name: timing.median for name, timing in interleave(calls, rounds, device).items()}


def _row(pipe: Any, golden: GoldenNoise, steps: int, rounds: int, device: torch.device) -> dict[str, Any]:
    # the same components, attached once
    attached_pipe = copy.copy(pipe)
    golden.attach(attached_pipe)

    def plain() -> float:
        return _seconds(lambda: _call(pipe, steps), device)

    def attached() -> float:
        return _seconds(lambda: _call(attached_pipe, steps), device)

    plain(), attached()
    times: list[tuple[float, float]] = []
    for index in range(rounds):
        if index % 2:
            times.append((plain(), attached()))
        else:
            second = attached()
            times.append((plain(), second))
    base = statistics.median(first for first, _ in times)
    low, added, high = statistics.quantiles((second - first for first, second in times), n=4)
    return {
        "steps": steps,
        "plain_ms": 1e3 * base,
        "attached_ms": 1e3 * statistics.median(second for _, second in times),
        "added_ms": {"median": 1e3 * added, "quartiles": [1e3 * low, 1e3 * high]},
        "added_share": added / base,
        "added_share_quartiles": [low / base, high / base],
    }


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def _print(parts: dict[str, float], rows: list[dict[str, Any]]) -> None:
    console = Console(width=120)
    table = Table("part", "ms", title="by itself, median")
    for name, milliseconds in parts.items():
        table.add_row(name, f"{milliseconds:.2f}")
    console.print(table)
    table = Table("steps", "plain ms", "attached ms", "added ms", "added", "published", title="whole calls")
    for row in rows:
        low, high = row["added_share_quartiles"]
        table.add_row(
            str(row["steps"]),
            f"{row['plain_ms']:.1f}",
            f"{row['attached_ms']:.1f}",
            f"{row['added_ms']['median']:+.2f}",
            f"{row['added_share']:+.2%} ({low:+.2%} to {high:+.2%})",
            f"{row['published_share']:+.2%}",
        )
    console.print(table)
    console.print(f"The paper reports {PUBLISHED_SHARE:.0%} for its code.", highlight=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4, 10, 50])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--engine", default="torch", help="default: %(default)s")
    parser.add_argument("--device", help="default: CUDA if there is any")
    parser.add_argument("--output", "--out", type=Path, help="folder for JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
