"""Latency of golden noise: the published computation against every engine that runs here.

    python benchmarks/latency.py                                  random weights, all engines, batch 1
    python benchmarks/latency.py --batch 1 4 --output results     JSON and PNG as well

All contenders get the same inputs, those of one kind of network the same weights, and take turns in one
process. A ratio is printed only for an engine whose golden noise agrees in this very run with the published
computation, or, of another kind of network, with that network in float32. An engine that fails, in whatever
way, is a line that says so; results are written after every batch, so that a run that is stopped keeps what
it had. `--seconds` bounds the time of a batch: slow calls are then timed in fewer rounds.

The column *svd* times the solver that the engine runs: `jacobi`, in a CUDA graph of its own, where calls are
replayed from graphs.

The *critical path* is the time from "prompt embeddings ready" to "golden noise ready" where the noise was
known before the prompt was encoded, by a stand-in for the encoders: see `latency_overlap`. The published
code can do nothing ahead. The *prompt half* is the same with nothing else at work.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from baseline import PublishedNPNet
from harness import environment, write_json
from latency_overlap import Encoder
from latency_race import BASELINE, STAGES, Contender, build_contenders, probe, race
from npnet_export.stages import Stages
from npnet_export.weights import WeightsRequest
from npnet_runtime import NPNet, NPNetConfig
from npnet_runtime.devices import resolve_device
from npnet_runtime.inputs.texts import random_inputs
from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.networks.prompt_attention import PromptAttentionConfig, default_channels
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import KINDS, Network, network_from_state
from npnet_runtime.weights import checkpoint
from npnet_runtime.weights.models import MODELS, get_model

OTHERS = tuple(kind for kind in KINDS if kind != NPNetConfig.kind)


def main() -> int:
    """Run the benchmark; 1 if an engine disagrees with the baseline, or none could be measured."""
    options = _options()
    device = resolve_device(options.device)
    weights = WeightsRequest(
        get_model(options.model), options.weights, None if options.weights else options.seed
    )
    stage = Stages()
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as folder:
        network, description, _ = weights.load()
        if not isinstance(network, NPNet):
            raise SystemExit(f"{weights.description}: a network of another kind than the published one")
        baseline = PublishedNPNet(network.config, network.state_dict()).to(device)
        contenders = []
        if "npnet" in options.network:
            contenders += build_contenders(
                options.engine, options.model, weights, max(options.batch), device, Path(folder), stage
            )
        for kind in [name for name in options.network if name in OTHERS]:
            other = _other(kind, network.config, options.seed)
            path = Path(folder) / f"{kind}.safetensors"
            checkpoint.write(path, other.state_dict(), other.config)
            contenders += build_contenders(
                options.engine,
                options.model,
                WeightsRequest(None, str(path)),
                max(options.batch),
                device,
                Path(folder),
                stage,
                other,
            )
        result: dict[str, Any] = {
            "what": "latency of golden noise, milliseconds",
            "command": "python benchmarks/latency.py " + " ".join(sys.argv[1:]),
            "model": options.model,
            "weights": description,
            "environment": environment(device),
            "rounds": options.rounds,
            "seconds": options.seconds,
            "encoder_stand_in": Encoder.describe(device),
            "rows": [],
        }

        def keep() -> None:
            result["absent"] = {c.name: c.absent for c in contenders if c.absent}
            if options.output:
                write_json(options.output / f"{_name(options, device)}.json", result)

        for batch in options.batch:
            stage(f"timing batch {batch}, {options.rounds} rounds")
            noise, prompt = random_inputs(network.config, range(batch), device)
            prompts = prompt.given["prompt_embeds"]
            result["rows"] += race(
                baseline, contenders, noise, prompts, options.rounds, device, options.seconds
            )
            keep()
        checkpoint.write(Path(folder) / "weights", network.state_dict(), network.config)
        stage("cold starts")
        probes = {BASELINE: probe(Path(folder) / "weights", device, max(options.batch))}
        probes |= {c.name: probe(c.folder, device, max(options.batch)) for c in contenders if c.built}
        for row in result["rows"]:
            row["fresh_process"] = probes.get(row["engine"])
        keep()
    _print(console, result["rows"], contenders)
    if options.output:
        from latency_chart import draw

        path = options.output / _name(options, device)
        draw(result, path.with_name(f"{path.name}.png"))
        console.print(f"wrote {path}.json and .png")
    raced = [row for row in result["rows"] if row["engine"] != BASELINE]
    return 0 if raced and all(row["parity"]["agrees"] for row in raced) else 1


def _other(kind: str, config: NPNetConfig, seed: int) -> Network:
    """A network of another kind for the same noise and text, with random weights."""
    shapes = (*config.latent_shape, *config.text_shape)
    widths = default_channels(*config.latent_shape[1:])
    other: PromptAttentionConfig | AnySizeConfig = PromptAttentionConfig(*shapes, channels=widths)
    if kind == AnySizeConfig.kind:
        other = AnySizeConfig(*shapes, least_side=32, most_side=256, most_tokens=1024, channels=widths)
    return network_from_state(other, random_state(other, seed))


def _name(options: argparse.Namespace, device: torch.device) -> str:
    return f"latency-{options.model}-{device.type}" + (f"-{options.tag}" if options.tag else "")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="sdxl")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", help="a checkpoint or a hub id; default: random weights")
    source.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument(
        "--engine", action="append", metavar="KIND[:PRECISION]", help="default: all, fp32 (and fp16 on CUDA)"
    )
    parser.add_argument(
        "--network",
        nargs="+",
        choices=KINDS,
        default=["npnet"],
        help="kinds that engines are built of; all but the first are compared with themselves in float32",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, help="about how long the timing of a batch may take")
    parser.add_argument("--tag", help="added to the names of the files")
    parser.add_argument("--device", help="default: CUDA if there is any")
    parser.add_argument("--output", "--out", type=Path, help="folder for JSON and PNG")
    return parser.parse_args()


def _print(console: Console, rows: list[dict[str, Any]], contenders: list[Contender]) -> None:
    table = Table(title="median ms (p90, p99), and how many times faster than the published computation")
    for column in ("engine", "batch", *STAGES, "cold start", "peak memory", "parity"):
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = []
        for stage in STAGES:
            if stage not in row["milliseconds"]:
                cells.append("")
                continue
            time = row["milliseconds"][stage]
            ratio = f"\n{row['speed_up'][stage]:.2f}x" if "speed_up" in row else "\nno ratio"
            cells.append(f"{time['median']:.2f} ({time['p90']:.2f}, {time['p99']:.2f}){ratio}")
        fresh_process, parity = row["fresh_process"], row["parity"]
        fresh = ("", "")
        if fresh_process:
            fresh = (
                (f"{fresh_process['cold_start_s']:.2f} s", f"{fresh_process['peak_mb']:.0f} MB")
                if "cold_start_s" in fresh_process
                else ("failed", "")
            )
        verdict = "agrees" if parity["agrees"] else "DISAGREES"
        said = f"{verdict}\n{parity['statistic']} {parity['value']:.1e}" if row["engine"] != BASELINE else ""
        table.add_row(row["engine"], str(row["batch"]), *cells, *fresh, said)
    console.print(table)
    for contender in contenders:
        if contender.absent:
            console.print(f"not measured: {contender.name}: {contender.absent}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
