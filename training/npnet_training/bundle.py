"""Assemble an embedded model of a trained one and its networks: `python -m npnet_training.bundle`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from npnet_runtime.files import atomic_directory
from npnet_runtime.networks.any_size_config import config_for_shapes
from npnet_runtime.weights import checkpoint
from npnet_training.command import run
from npnet_training.embedded import WORLDS, EmbeddedModel, Variant, WorldName
from npnet_training.errors import ModelError
from npnet_training.evaluation import paired
from npnet_training.sampling import Denoiser
from npnet_training.scenes.grammar import prompts as scenes_prompts
from npnet_training.scenes.judging import judged
from npnet_training.scenes.second_judge import FILE as SECOND_JUDGE
from npnet_training.settings import Settings
from npnet_training.shapes.building import CHECKPOINTS, METRICS
from npnet_training.shapes.grammar import prompts as shapes_prompts
from npnet_training.shapes.judging import strict_rate
from npnet_training.study.arms import changed_by
from npnet_training.training.networks import serves

GOLDEN = "golden"
NETWORKS = ("npnet", "prompt-attention")
MOST_BYTES = 16_000_000
EPILOG = """examples:
  python -m npnet_training.bundle --world shapes --model shapes-model --networks networks \\
      --output training/npnet_training/shapes/assets
  python -m npnet_training.bundle --world scenes --model scenes-model --few-step few-step \\
      --second-judge judge.safetensors --networks networks --output training/npnet_training/scenes/assets
"""


class BundleSettings(Settings):
    """Assemble the folder of an embedded model, in half precision, with sizes and hashes in its manifest.

    What its golden noise is worth, in front of each of its denoisers, is added to the model's metrics.json.
    """

    world: WorldName
    """Whose model."""
    model: Path
    """Folder as python -m npnet_training.WORLD.build writes it."""
    networks: Path | None = None
    """Folder with npnet.safetensors and prompt-attention.safetensors, checkpoints of npnet-train; none are
    bundled if left out."""
    output: Path
    """Folder to write; one that exists is replaced when all is well."""
    few_step: Path | None = None
    """Folder of the few-step LoRA, as python -m npnet_training.distill --rank writes it; of scenes only."""
    second_judge: Path | None = None
    """The weights of the judge that is not trained on, of scenes only."""
    judged: int = Field(default=1000, ge=1)
    """Held-out prompts on which each denoiser and network is judged."""

    @model_validator(mode="after")
    def _of_the_world(self) -> BundleSettings:
        given = (self.few_step is not None, self.second_judge is not None)
        if given != (self.world == "scenes",) * 2:
            raise ValueError(
                "few_step and second_judge: expected both with --world scenes, neither with shapes"
            )
        return self


def assemble(settings: BundleSettings) -> int:
    """Check and copy everything, and write the manifest; its size in bytes.

    Raises:
        AssetsError: a file of the model is missing or altered.
        CheckpointError: a network is missing or damaged.
        ModelError: the networks are for other latents or texts, or all is larger than 16 MB.
    """
    model = WORLDS[settings.world]
    model.check(settings.model, [name for name, variant in model.denoisers.items() if not variant.lora])
    with atomic_directory(settings.output, replace=True) as folder:
        shutil.copytree(
            settings.model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKPOINTS)
        )
        if settings.few_step is not None and settings.second_judge is not None:
            shutil.copytree(
                settings.few_step, folder / model.denoisers["few-step"].folder, dirs_exist_ok=True
            )
            shutil.copy(settings.second_judge, folder / SECOND_JUDGE)
        shutil.rmtree(folder / GOLDEN, ignore_errors=True)
        if settings.networks is not None:
            _add_networks(settings.networks, model.load(folder=settings.model), folder / GOLDEN)
        model.write_manifest(folder)
        metrics = json.loads((folder / METRICS).read_text()) | _judge(settings, model, folder)
        (folder / METRICS).write_text(json.dumps(metrics, indent=1) + "\n")
        model.write_manifest(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > MOST_BYTES:
            raise ModelError(
                f"expected at most {MOST_BYTES} bytes in all, given {size}; use smaller networks"
            )
    return size


def _add_networks(networks: Path, pipe: Any, folder: Path) -> None:
    """Those that take the pipeline's noise and texts, in half precision."""
    denoiser = Denoiser(pipe)
    pooled = denoiser.texts.get("pooled", (0,))[0]
    wanted = config_for_shapes(denoiser.latent_shape, denoiser.text_shape, pooled_dim=pooled)
    folder.mkdir()
    for name in NETWORKS:
        path = networks / f"{name}.safetensors"
        read = checkpoint.read(path)
        if not serves(read.config, wanted):
            raise ModelError(
                f"{path}: expected a network for latents {wanted.latent_shape} and texts "
                f"{wanted.text_shape}, given one for {read.config.latent_shape} and {read.config.text_shape}"
            )
        halves = {key: value.half() for key, value in read.state.items()}
        checkpoint.write(folder / path.name, halves, read.config)


def _judge(settings: BundleSettings, model: EmbeddedModel, folder: Path) -> dict[str, Any]:
    """Share of images that are strictly true, by denoiser, and from golden noise of the same seeds."""
    names = NETWORKS if settings.networks is not None else ()
    networks = {
        name: checkpoint.read(folder / GOLDEN / f"{name}.safetensors").network().eval() for name in names
    }
    plain_rates: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for variant, about in model.denoisers.items():
        pipe = model.load(variant, folder=folder)
        plain = _strict(settings, pipe, None, about)
        plain_rates[variant] = {
            "prompts": len(plain), "steps": about.steps, "guidance": about.guidance,
            "strict": float(plain.mean()),
        }  # fmt: skip
        for name, network in networks.items():
            golden = _strict(settings, pipe, changed_by(network), about)
            found.setdefault(name, {})[variant] = {
                "prompts": len(plain),
                "plain": float(plain.mean()),
                "golden": float(golden.mean()),
                "against_plain": vars(paired(plain.astype(float), golden.astype(float))),
            }
    return {"denoisers": plain_rates} | ({GOLDEN: found} if found else {})


def _strict(
    settings: BundleSettings, pipe: Any, change: Callable[..., Any] | None, about: Variant
) -> NDArray[np.bool_]:
    if settings.world == "shapes":
        return strict_rate(pipe, shapes_prompts("held-out", settings.judged), change, steps=about.steps)
    held_out = scenes_prompts("held-out", settings.judged)
    rows = judged(pipe, held_out, change, steps=about.steps, guidance=about.guidance)
    return np.array([row.strict for row in rows])


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(BundleSettings, "python -m npnet_training.bundle", EPILOG, argv, _work)


def _work(settings: BundleSettings) -> int:
    print(f"{settings.output}: {assemble(settings) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
