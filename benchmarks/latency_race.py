"""The race of `latency.py`: engines built, compared with the published computation, timed beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baseline import PublishedNPNet
from harness import Timing, interleave
from latency_overlap import Encoder, Overlap
from npnet_export import ExportSettings, export
from npnet_export.engines import ENGINES
from npnet_export.parity import TOLERANCES, difference
from npnet_export.stages import Stages
from npnet_export.weights import WeightsRequest
from npnet_kernels import latent_to_matrix, svd
from npnet_runtime import GoldenNoise, NPNetError
from npnet_runtime.backends.machine import installed_version
from npnet_runtime.backends.openvino_backend import devices, target_obstacle
from npnet_runtime.hot_path.capture import Capture
from npnet_runtime.hot_path.graphed import SOLVER
from npnet_runtime.hot_path.passes import SIGNS
from npnet_runtime.networks.registry import Network

BASELINE = "published, eager float32"
STAGES = ("svd", "spectral half", "prompt half", "critical path", "end to end")
PROBE_LIMIT_S = 120
WITHOUT_SVD = ("prompt half", "critical path", "end to end")
_PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "fp16")}


@dataclass
class Contender:
    """An engine in the race, or one that could not start."""

    name: str
    precision: str
    golden: GoldenNoise | None
    folder: Path
    absent: str | None = None
    built: bool = False  # a bundle of its own, whose cold start is measured
    network: Network | None = None  # what it is compared with; None for the published computation

    @property
    def stages(self) -> tuple[str, ...]:
        """What is timed of it."""
        return STAGES if self.network is None else WITHOUT_SVD


def build_contenders(
    engines: list[str] | None,
    model: str,
    weights: WeightsRequest,
    max_batch: int,
    device: torch.device,
    folder: Path,
    stage: Stages,
    network: Network | None = None,
) -> list[Contender]:
    """Export and load engines, with graphs and without where both can be had.

    Args:
        engines: `KIND[:PRECISION]`; None for all.
        model: for the record in the bundles.
        weights: of all of them.
        max_batch: largest batch they take.
        device: where they run.
        folder: that the bundles are written to.
        stage: told what is being done.
        network: of another kind than the published one, with these weights, float32 on the CPU.
    """
    here = [name for name, kind in ENGINES.items() if device.type in kind.devices]
    wanted = engines or [f"{name}:{p}" for name in here for p in _precisions(name, device)]
    prefix = "" if network is None else f"{network.config.kind} "
    contenders: list[Contender] = []
    for item in wanted:
        kind, _, precision = item.partition(":")
        precision = precision or "fp32"
        target = folder / f"{prefix}{kind}-{precision}".replace(" ", "-")
        contender = Contender(f"{prefix}{kind} {precision}", precision, None, target, network=network)
        contenders.append(contender)
        settings = ExportSettings(
            weights, target, model, kind, precision, max_batch=max_batch, device=str(device)
        )
        try:
            stage(f"building {kind} {precision}")
            export(settings)
            contender.golden = GoldenNoise(target, device=device)
            contender.built = True
            if contender.golden.captured:
                contenders.append(
                    Contender(
                        f"{prefix}{kind} {precision}, no graphs",
                        precision,
                        GoldenNoise(target, device=device, cuda_graphs=False),
                        target,
                        network=network,
                    )
                )
        except Exception as error:  # whatever a compiler or a driver raises, the others go on
            contender.absent = _told(error)
    return contenders


def _precisions(engine: str, device: torch.device) -> tuple[str, ...]:
    """Those that are worth a race: on a CPU half precision is, where it multiplies in bfloat16."""
    if engine == "openvino" and device.type == "cpu" and installed_version(engine):
        return ("fp32", *(["bf16"] if target_obstacle("CPU", "bf16", devices()) is None else []))
    return _PRECISIONS[device.type]


def _told(error: Exception) -> str:
    kind = "" if isinstance(error, NPNetError) else f"{type(error).__name__}: "
    return (kind + str(error)).replace("\n", " ")


def probe(path: Path, device: torch.device, batch: int) -> dict[str, Any]:
    """Cold start and peak memory, which only a fresh process can tell; or the `error` it ended with."""
    script = str(Path(__file__).with_name("cold_start.py"))
    command = [sys.executable, script, str(path), str(device), str(batch)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PROBE_LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"it took more than {PROBE_LIMIT_S} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return json.loads(done.stdout)


def race(
    baseline: PublishedNPNet,
    contenders: list[Contender],
    noise: Tensor,
    prompts: Tensor,
    rounds: int,
    device: torch.device,
    seconds: float | None,
) -> list[dict[str, Any]]:
    """Compare and time all contenders; a row each, the published computation's first.

    Args:
        baseline: on the device.
        contenders: one that fails is noted as absent.
        noise: (B, C, H, W).
        prompts: (B, tokens, width).
        rounds: timed calls of each.
        device: where they run.
        seconds: about how long the timing may take, None for no limit.
    """
    running: dict[str, Contender] = {}
    parities: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}
    encoder = Encoder(len(noise), device)
    before: dict[str, Callable[[], object]] = {f"{BASELINE}|critical path": encoder}
    overlaps: list[Overlap] = []
    with torch.inference_mode():
        branch = baseline.unet_svd
        calls |= {
            f"{BASELINE}|svd": lambda: branch.svd(noise),
            f"{BASELINE}|spectral half": lambda: branch(noise),
            f"{BASELINE}|prompt half": lambda: baseline.prompt_branches(noise, prompts),
            f"{BASELINE}|critical path": lambda: baseline(noise, prompts),
            f"{BASELINE}|end to end": lambda: baseline(noise, prompts),
        }
        for contender in contenders:
            name, golden = contender.name, contender.golden
            if golden is None:
                continue
            try:
                parity = _parity(baseline, contender, noise, prompts)
                own = _calls(contender, golden, noise, prompts)
                for call in own.values():
                    call()
            except Exception as error:  # whatever a compiler or a driver raises, the others go on
                contender.absent = f"batch {len(noise)}: {_told(error)}"
                continue
            overlap = Overlap(golden, noise, prompts, encoder)
            overlaps.append(overlap)
            running[name], parities[name] = contender, parity
            calls |= own | {f"{name}|critical path": overlap.finish}
            before[f"{name}|critical path"] = overlap.begin
        try:
            timings = interleave(calls, rounds, device, before=before, seconds=seconds)
        finally:
            for overlap in overlaps:
                overlap.close()

    published = {stage: timings[f"{BASELINE}|{stage}"] for stage in STAGES}
    exact = {"statistic": "max_abs", "value": 0.0, "tolerance": 0.0, "agrees": True}
    rows = [_row(BASELINE, len(noise), published, published, exact)]
    for name, contender in running.items():
        own_times = {stage: timings[f"{name}|{stage}"] for stage in contender.stages}
        rows.append(_row(name, len(noise), own_times, published, parities[name]))
    return rows


def _calls(
    contender: Contender, golden: GoldenNoise, noise: Tensor, prompts: Tensor
) -> dict[str, Callable[[], object]]:
    name, prepared = contender.name, golden.prepare(noise)
    calls: dict[str, Callable[[], object]] = {}
    if contender.network is None:
        calls[f"{name}|svd"] = _svd_call(golden, latent_to_matrix(noise))
        calls[f"{name}|spectral half"] = lambda: golden.prepare(noise)
    return calls | {
        f"{name}|prompt half": lambda: golden(prepared, prompts),
        f"{name}|end to end": lambda: golden(noise, prompts),
    }


def _svd_call(golden: GoldenNoise, matrix: Tensor) -> Callable[[], object]:
    """The decomposition as the engine runs it: in a graph by the graphs' solver, else by the one chosen."""
    signs = SIGNS[str(golden.bundle.manifest.signs)]
    if not golden.captured:
        return lambda: svd(matrix, signs=signs)
    return Capture(golden.device)(lambda: svd(matrix, solver=SOLVER, signs=signs).u).replay


def _parity(baseline: PublishedNPNet, contender: Contender, noise: Tensor, prompts: Tensor) -> dict[str, Any]:
    golden = contender.golden
    assert golden is not None
    statistic, tolerance = TOLERANCES[golden.bundle.manifest.precision]
    # It is timed as PyTorch is by default, with cuDNN's convolutions in TF32, and compared without.
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark, allow_tf32=False):
        if contender.network is not None:
            expected = contender.network(noise.cpu(), prompts.cpu()).to(noise.device)
        else:
            # The published network with our factors: signs are a choice, not an error.
            factors = svd(latent_to_matrix(noise), signs=SIGNS[str(golden.bundle.manifest.signs)])
            expected = baseline(noise, prompts, factors)
    value = difference(statistic, golden(noise, prompts), expected)
    return {"statistic": statistic, "value": value, "tolerance": tolerance, "agrees": value <= tolerance}


def _row(
    name: str,
    batch: int,
    own: dict[str, Timing],
    published: dict[str, Timing],
    parity: dict[str, Any],
) -> dict[str, Any]:
    row: dict[str, Any] = {"engine": name, "batch": batch, "parity": parity}
    row["milliseconds"] = {stage: asdict(timing) for stage, timing in own.items()}
    if parity["agrees"]:
        row["speed_up"] = {stage: published[stage].median / own[stage].median for stage in own}
    return row
