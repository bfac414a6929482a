"""What pairs of several models would cost: `python -m npnet_training.planning --output FILE`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from pydantic import Field

from npnet_runtime.files import atomic_file
from npnet_training.command import run
from npnet_training.planning.estimates import plan_collection
from npnet_training.planning.gpus import UTILISATION, get_gpu
from npnet_training.planning.parts import parts_of
from npnet_training.sampling import RedenoiseSettings, SampleSettings
from npnet_training.settings import Settings

EPILOG = """example:
  python -m npnet_training.planning --pairs 100000 --output training/results/costs.json
"""


class PlanningSettings(Settings):
    """Estimate what noise pairs of several models would cost on several GPUs, without any of them."""

    output: Path
    """JSON file to write."""
    models: tuple[str, ...] = ("sdxl", "flux.1-dev", "z-image")
    """Models, by name, folder or repository."""
    gpus: tuple[str, ...] = ("rtx4090", "h100")
    """GPUs, by name."""
    pairs: int = Field(default=100_000, ge=1)
    """Noise pairs of each model."""
    scored: bool = True
    """With an image from each noise for the judges, in as many steps as the model takes."""


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(PlanningSettings, "python -m npnet_training.planning", EPILOG, argv, _work)


def _work(settings: PlanningSettings) -> int:
    rows = []
    for name in settings.models:
        parts = parts_of(name)
        for gpu in map(get_gpu, settings.gpus):
            sample = SampleSettings(steps=parts.steps) if settings.scored else None
            plan = plan_collection(parts, settings.pairs, gpu, RedenoiseSettings(), sample)
            rows.append({"model": name, "gpu": gpu.name, "steps": parts.steps, **asdict(plan)})
    document = {
        "what": "ESTIMATES from configurations and counted operations; nothing was run or measured",
        "made_by": f"python -m npnet_training.planning --pairs {settings.pairs}",
        "assumed_share_of_peak": UTILISATION,
        "rows": rows,
    }
    with atomic_file(settings.output) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print("| model | GPU | evaluations a pair | TFLOP a pair | GPU hours | pairs, GB |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} | {row['gpu']} | {row['evaluations']} | {row['tflops']:.0f} | "
            f"{row['gpu_hours']:,.0f} | {row['megabytes'] / 1e3:.1f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
