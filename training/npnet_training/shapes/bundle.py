"""Assemble the embedded model of a trained one and its networks: `python -m npnet_training.shapes.bundle`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from npnet_runtime import checkpoint
from npnet_runtime.files import atomic_directory
from npnet_training.command import run
from npnet_training.errors import ModelError
from npnet_training.settings import Settings
from npnet_training.shapes import assets

GOLDEN = "golden"
NETWORKS = ("npnet", "prompt-attention")
MOST_BYTES = 16_000_000
EPILOG = """example:
  python -m npnet_training.shapes.bundle --model shapes-model --networks networks \\
      --output training/npnet_training/shapes/assets
"""


class BundleSettings(Settings):
    """Assemble the folder of the embedded model, in half precision, with sizes and hashes in its manifest."""

    model: Path
    """Folder as python -m npnet_training.shapes.build writes it."""
    networks: Path
    """Folder with npnet.safetensors and prompt-attention.safetensors, checkpoints of npnet-train."""
    output: Path
    """Folder to write; one that exists is replaced when all is well."""


def assemble(settings: BundleSettings) -> int:
    """Check and copy everything, and write the manifest; its size in bytes.

    Raises:
        ShapesAssetsError: a file of the model is missing or altered.
        CheckpointError: a network is missing or damaged.
        ModelError: the networks are for other latents or texts, or all is larger than 16 MB.
    """
    assets.check(settings.model)
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
        assets.write_manifest(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > MOST_BYTES:
            raise ModelError(
                f"expected at most {MOST_BYTES} bytes in all, given {size}; use smaller networks"
            )
    return size


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(BundleSettings, "python -m npnet_training.shapes.bundle", EPILOG, argv, _work)


def _work(settings: BundleSettings) -> int:
    print(f"{settings.output}: {assemble(settings) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
