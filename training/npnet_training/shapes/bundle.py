"""Assemble the embedded model of a trained one and its networks: `python -m npnet_training.shapes.bundle`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from npnet_runtime.files import atomic_directory
from npnet_runtime.weights import checkpoint
from npnet_training.command import run
from npnet_training.errors import ModelError
from npnet_training.evaluation import paired
from npnet_training.settings import Settings
from npnet_training.shapes import assets
from npnet_training.shapes.build import METRICS
from npnet_training.shapes.grammar import prompts
from npnet_training.shapes.judging import strict_rate
from npnet_training.study.arms import changed_by

GOLDEN = "golden"
NETWORKS = ("npnet", "prompt-attention")
MOST_BYTES = 16_000_000
EPILOG = """example:
  python -m npnet_training.shapes.bundle --model shapes-model --networks networks \\
      --output training/npnet_training/shapes/assets
"""


class BundleSettings(Settings):
    """Assemble the folder of the embedded model, in half precision, with sizes and hashes in its manifest.

    What its golden noise is worth, in front of both denoisers, is added to the model's metrics.json.
    """

    model: Path
    """Folder as python -m npnet_training.shapes.build writes it."""
    networks: Path
    """Folder with npnet.safetensors and prompt-attention.safetensors, checkpoints of npnet-train."""
    output: Path
    """Folder to write; one that exists is replaced when all is well."""
    judged: int = Field(default=1000, ge=1)
    """Held-out prompts on which each network is judged."""


def assemble(settings: BundleSettings) -> int:
    """Check and copy everything, and write the manifest; its size in bytes.

    Raises:
        ShapesAssetsError: a file of the model is missing or altered.
        CheckpointError: a network is missing or damaged.
        ModelError: the networks are for other latents or texts, or all is larger than 16 MB.
    """
    assets.check(settings.model, ("main", "weak"))
    pipe = assets.load_pipeline(folder=settings.model)
    latents = (pipe.unet.config.in_channels, pipe.unet.config.sample_size, pipe.unet.config.sample_size)
    text = (pipe.tokenizer.model_max_length, pipe.text_encoder.config.hidden_size)
    with atomic_directory(settings.output, replace=True) as folder:
        shutil.copytree(settings.model, folder, dirs_exist_ok=True)
        shutil.rmtree(folder / GOLDEN, ignore_errors=True)
        (folder / GOLDEN).mkdir()
        for name in NETWORKS:
            path = settings.networks / f"{name}.safetensors"
            read = checkpoint.read(path)
            config = read.config
            if (config.latent_shape, config.text_shape) != (latents, text):
                raise ModelError(
                    f"{path}: expected a network for latents {latents} and texts {text}, given one for "
                    f"{config.latent_shape} and {config.text_shape}"
                )
            halves = {key: value.half() for key, value in read.state.items()}
            checkpoint.write(folder / GOLDEN / path.name, halves, config)
        metrics = json.loads((folder / METRICS).read_text()) | {GOLDEN: _judge(settings, pipe, folder)}
        (folder / METRICS).write_text(json.dumps(metrics, indent=1) + "\n")
        assets.write_manifest(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > MOST_BYTES:
            raise ModelError(
                f"expected at most {MOST_BYTES} bytes in all, given {size}; use smaller networks"
            )
    return size


def _judge(settings: BundleSettings, main: Any, folder: Path) -> dict[str, Any]:
    """Share of images that are strictly true, from plain and golden noise of the same seeds."""
    held_out = prompts("held-out", settings.judged)
    networks = {
        name: checkpoint.read(folder / GOLDEN / f"{name}.safetensors").network().eval() for name in NETWORKS
    }
    found: dict[str, Any] = {}
    pipes = {"main": main, "weak": assets.load_pipeline(unet="weak", folder=settings.model)}
    for model, pipe in pipes.items():
        plain = strict_rate(pipe, held_out)
        for name, network in networks.items():
            golden = strict_rate(pipe, held_out, changed_by(network))
            found.setdefault(name, {})[model] = {
                "prompts": len(held_out),
                "plain": float(plain.mean()),
                "golden": float(golden.mean()),
                "against_plain": vars(paired(plain.astype(float), golden.astype(float))),
            }
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(BundleSettings, "python -m npnet_training.shapes.bundle", EPILOG, argv, _work)


def _work(settings: BundleSettings) -> int:
    print(f"{settings.output}: {assemble(settings) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
