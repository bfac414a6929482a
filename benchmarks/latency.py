"""Latency of golden noise: the published computation against every engine that runs here.

    python benchmarks/latency.py                                  random weights, all engines, batch 1
    python benchmarks/latency.py --batch 1 4 --output results     JSON and PNG as well

All contenders get the same weights and inputs, and take turns in one process. A ratio is printed only for
an engine whose golden noise agrees with the published computation in this very run.

The *critical path* is the time from "prompt embeddings ready" to "golden noise ready" where the noise was
known before the prompt was encoded, by a stand-in for the encoders: see `latency_overlap`. The published
code can do nothing ahead. The *prompt half* is the same with nothing else at work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from baseline import PublishedNPNet
from harness import Timing, environment, interleave, write_json
from latency_overlap import Encoder, Overlap
from npnet_export import ExportSettings, export
from npnet_export.engines import ENGINES
from npnet_export.parity import TOLERANCES, difference, fresh_inputs
from npnet_export.stages import Stages
from npnet_export.weights import WeightsRequest
from npnet_kernels import latent_to_matrix, svd
from npnet_runtime import GoldenNoise, NPNet, NPNetError
from npnet_runtime.devices import resolve_device
from npnet_runtime.hot_path.passes import SIGNS
from npnet_runtime.weights import checkpoint
from npnet_runtime.weights.models import MODELS, get_model

BASELINE = "published, eager float32"
STAGES = ("svd", "spectral half", "prompt half", "critical path", "end to end")
_PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "fp16")}


@dataclass
class Contender:
    """An engine in the race, or one that could not start."""

    name: str
    precision: str
    golden: GoldenNoise | None
    folder: Path
    absent: str | None = None
    probe: dict[str, float] | None = None


def main() -> int:
    """Run the benchmark; 1 if an engine disagrees with the baseline."""
    options = _options()
    device = resolve_device(options.device)
    weights = WeightsRequest(
        get_model(options.model), options.weights, None if options.weights else options.seed
    )
    stage = Stages()
    with tempfile.TemporaryDirectory() as folder:
        network, description = weights.load()
        if not isinstance(network, NPNet):
            raise SystemExit(f"{weights.description}: a network of another kind than the published one")
        baseline = PublishedNPNet(network.config, network.state_dict()).to(device)
        checkpoint.write(Path(folder) / "weights", network.state_dict(), network.config)
        published_probe = _probe(Path(folder) / "weights", device, max(options.batch))
        contenders = list(_contenders(options, weights, device, Path(folder), stage))
        rows: list[dict[str, Any]] = []
        for batch in options.batch:
            stage(f"timing batch {batch}, {options.rounds} rounds")
            noise, prompts = (tensor.to(device) for tensor in fresh_inputs(network, batch))
            rows += _race(baseline, contenders, noise, prompts, options.rounds, device)
        rows[0]["fresh_process"] = published_probe
    console = Console(width=140)
    _print(console, rows, contenders)
    result = {
        "what": "latency of golden noise, milliseconds",
        "command": "python benchmarks/latency.py " + " ".join(sys.argv[1:]),
        "model": options.model,
        "weights": description,
        "environment": environment(device),
        "rounds": options.rounds,
        "encoder_stand_in": Encoder.describe(device),
        "rows": rows,
        "absent": {contender.name: contender.absent for contender in contenders if contender.absent},
    }
    if options.output:
        from latency_chart import draw

        name = f"latency-{options.model}-{device.type}"
        write_json(options.output / f"{name}.json", result)
        draw(result, options.output / f"{name}.png")
        console.print(f"wrote {options.output / name}.json and .png")
    return 0 if all(row["parity"]["agrees"] for row in rows) else 1


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
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", help="default: CUDA if there is any")
    parser.add_argument("--output", "--out", type=Path, help="folder for JSON and PNG")
    return parser.parse_args()


def _contenders(
    options: argparse.Namespace, weights: WeightsRequest, device: torch.device, folder: Path, stage: Stages
) -> list[Contender]:
    here = [name for name, kind in ENGINES.items() if device.type in kind.devices]
    wanted = options.engine or [f"{name}:{p}" for name in here for p in _PRECISIONS[device.type]]
    contenders: list[Contender] = []
    for item in wanted:
        kind, _, precision = item.partition(":")
        precision = precision or "fp32"
        target = folder / f"{kind}-{precision}"
        contender = Contender(f"{kind} {precision}", precision, None, target)
        contenders.append(contender)
        settings = ExportSettings(
            weights, target, options.model, kind, precision, max_batch=max(options.batch), device=str(device)
        )
        try:
            stage(f"building {kind} {precision}")
            export(settings)
            contender.probe = _probe(target, device, max(options.batch))
            contender.golden = GoldenNoise(target, device=device)
            if contender.golden.captured:
                contenders.append(
                    Contender(
                        f"{kind} {precision}, no graphs",
                        precision,
                        GoldenNoise(target, device=device, cuda_graphs=False),
                        target,
                    )
                )
        except (NPNetError, KeyError) as error:
            contender.absent = str(error).replace("\n", " ")
    return contenders


def _probe(path: Path, device: torch.device, batch: int) -> dict[str, float]:
    """Cold start and peak memory, which only a fresh process can tell."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("cold_start.py")),
        str(path),
        str(device),
        str(batch),
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output)


def _race(
    baseline: PublishedNPNet,
    contenders: list[Contender],
    noise: Tensor,
    prompts: Tensor,
    rounds: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    calls: dict[str, Callable[[], object]] = {}
    running = {contender.name: contender.golden for contender in contenders if contender.golden is not None}
    encoder = Encoder(len(noise), device)
    before: dict[str, Callable[[], object]] = {f"{BASELINE}|critical path": encoder}
    with torch.inference_mode():
        branch = baseline.unet_svd
        calls |= {
            f"{BASELINE}|svd": lambda: branch.svd(noise),
            f"{BASELINE}|spectral half": lambda: branch(noise),
            f"{BASELINE}|prompt half": lambda: baseline.prompt_branches(noise, prompts),
            f"{BASELINE}|critical path": lambda: baseline(noise, prompts),
            f"{BASELINE}|end to end": lambda: baseline(noise, prompts),
        }
        overlaps = {name: Overlap(golden, noise, prompts, encoder) for name, golden in running.items()}
        for name, golden in running.items():
            calls |= _calls(name, golden, noise, prompts)
            calls[f"{name}|critical path"] = overlaps[name].finish
            before[f"{name}|critical path"] = overlaps[name].begin
        timings = interleave(calls, rounds, device, before=before)
        for overlap in overlaps.values():
            overlap.close()
        parities = {name: _parity(baseline, golden, noise, prompts) for name, golden in running.items()}

    published = {stage: timings[f"{BASELINE}|{stage}"] for stage in STAGES}
    exact = {"statistic": "max_abs", "value": 0.0, "tolerance": 0.0, "agrees": True}
    rows = [_row(BASELINE, len(noise), published, published, exact, None)]
    for contender in contenders:
        if contender.name in running:
            own = {stage: timings[f"{contender.name}|{stage}"] for stage in STAGES}
            rows.append(
                _row(contender.name, len(noise), own, published, parities[contender.name], contender.probe)
            )
    return rows


def _calls(name: str, golden: GoldenNoise, noise: Tensor, prompts: Tensor) -> dict[str, Callable[[], object]]:
    prepared = golden.prepare(noise)
    matrix, signs = latent_to_matrix(noise), SIGNS[str(golden.bundle.manifest.signs)]
    return {
        f"{name}|svd": lambda: svd(matrix, signs=signs),
        f"{name}|spectral half": lambda: golden.prepare(noise),
        f"{name}|prompt half": lambda: golden(prepared, prompts),
        f"{name}|end to end": lambda: golden(noise, prompts),
    }


def _parity(baseline: PublishedNPNet, golden: GoldenNoise, noise: Tensor, prompts: Tensor) -> dict[str, Any]:
    # The published network with our factors: signs are a choice, not an error.
    factors = svd(latent_to_matrix(noise), signs=SIGNS[str(golden.bundle.manifest.signs)])
    statistic, tolerance = TOLERANCES[golden.bundle.manifest.precision]
    value = difference(statistic, golden(noise, prompts), baseline(noise, prompts, factors))
    return {"statistic": statistic, "value": value, "tolerance": tolerance, "agrees": value <= tolerance}


def _row(
    name: str,
    batch: int,
    own: dict[str, Timing],
    published: dict[str, Timing],
    parity: dict[str, Any],
    probe: dict[str, float] | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"engine": name, "batch": batch, "parity": parity, "fresh_process": probe}
    row["milliseconds"] = {stage: asdict(timing) for stage, timing in own.items()}
    if parity["agrees"]:
        row["speed_up"] = {stage: published[stage].median / own[stage].median for stage in STAGES}
    return row


def _print(console: Console, rows: list[dict[str, Any]], contenders: list[Contender]) -> None:
    table = Table(title="median ms (p90, p99), and how many times faster than the published computation")
    for column in ("engine", "batch", *STAGES, "cold start", "peak memory", "parity"):
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = []
        for stage in STAGES:
            time = row["milliseconds"][stage]
            ratio = f"\n{row['speed_up'][stage]:.2f}x" if "speed_up" in row else "\nno ratio"
            cells.append(f"{time['median']:.2f} ({time['p90']:.2f}, {time['p99']:.2f}){ratio}")
        probe, parity = row["fresh_process"], row["parity"]
        fresh = (f"{probe['cold_start_s']:.2f} s", f"{probe['peak_mb']:.0f} MB") if probe else ("", "")
        verdict = "agrees" if parity["agrees"] else "DISAGREES"
        said = f"{verdict}\n{parity['statistic']} {parity['value']:.1e}" if row["engine"] != BASELINE else ""
        table.add_row(row["engine"], str(row["batch"]), *cells, *fresh, said)
    console.print(table)
    for contender in contenders:
        if contender.absent:
            console.print(f"not measured: {contender.name}: {contender.absent}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
