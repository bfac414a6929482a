"""Make the second model from nothing: `python -m npnet_training.scenes.build --output DIR`."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from npnet_runtime.devices import resolve_device
from npnet_runtime.files import atomic_directory, atomic_file
from npnet_training.command import run
from npnet_training.embedded import SCENES
from npnet_training.scenes.data import draw_scenes
from npnet_training.scenes.grammar import prompts
from npnet_training.scenes.judging import judged
from npnet_training.scenes.networks import (
    make_autoencoder,
    make_scheduler,
    make_tokenizer,
    make_transformer,
)
from npnet_training.scenes.placing import SIZES
from npnet_training.scenes.train_text_encoder import train_text_encoders
from npnet_training.scenes.train_transformer import Latents, TransformerTraining
from npnet_training.settings import Settings
from npnet_training.shapes.building import (
    CHECKPOINTS,
    METRICS,
    Lines,
    add_look,
    begin,
    load,
    read_looks,
    save,
)
from npnet_training.shapes.train_autoencoder import (
    Precision,
    Report,
    autocast,
    encode,
    train_autoencoder,
    train_decoder,
)
from npnet_training.shapes.train_text_encoder import tokenize

EPILOG = """example:
  python -m npnet_training.scenes.build --output scenes-model
"""
STATE, LATENTS = "denoiser.pt", "latents.pt"
AT_ONCE = 3000  # scenes rendered before they are encoded


class BuildSettings(Settings):
    """How the second model is trained. Steps, not seconds, so that it can be repeated."""

    output: Path
    """Folder to write; must not exist. Beside it, OUTPUT.work keeps what is finished until all is: after a
    kill, the same command goes on."""
    seed: int = 0
    """Of everything random; the same seed gives other weights on another kind of device."""
    device: str = "cpu"
    """Where to train: cpu or cuda."""
    scenes: int = Field(default=54_000, ge=1)
    """Training images of 64x64 pixels; two ninths as many of each other size."""
    autoencoder_steps: int = Field(default=7100, ge=1)
    """Of the autoencoder, 16 images each."""
    crop_steps: int = Field(default=5500, ge=0)
    """The first of them, on parts of the images."""
    decoder_steps: int = Field(default=3000, ge=0)
    """Of its decoder alone, after that: 16 images each."""
    text_steps: int = Field(default=3000, ge=1)
    """Of the text encoders, 128 prompts each."""
    steps: int = Field(default=10_000, ge=1)
    """Of the denoiser, 64 scenes each."""
    kept: tuple[int, ...] = (1000, 2000, 4000, 7000)
    """Steps after which the denoiser is kept beside the last one, under checkpoints/; multiples of
    save_every."""
    precision: Precision = "bf16"
    """Of the products of the autoencoder and the denoiser; fp32 is faster on processors without bf16."""
    save_every: int = Field(default=250, ge=1)
    """Steps of the denoiser between two states."""
    look_every: int = Field(default=1000, ge=1)
    """Steps of the denoiser between two looks at how many of its images are true."""
    judged: int = Field(default=100, ge=1)
    """Held-out prompts judged at each look; the finished models are judged on ten times as many."""

    @model_validator(mode="after")
    def _consistent(self) -> BuildSettings:
        if any(step % self.save_every or step > self.steps for step in self.kept):
            raise ValueError(f"kept: expected multiples of {self.save_every} up to {self.steps}")
        return self


def build(settings: BuildSettings) -> dict[str, Any]:
    """Train all parts, judge them, and write the folder.

    Returns:
        The metrics that are written to `metrics.json`.

    Raises:
        TrainError: the work folder is of other settings.
    """
    from diffusers import FluxTransformer2DModel

    work = begin(settings.output, settings)
    device, report = str(resolve_device(settings.device)), Lines()
    pooled, encoder = _text_encoders(settings, work, device, report)
    vae = _autoencoder(settings, work, device, report)
    parts = _latents(settings, work, vae, device)
    pipe = _pipeline(vae, pooled, encoder)
    _train_denoiser(settings, work, parts, pipe, report)
    with atomic_directory(settings.output) as folder:
        _assemble(work, work / "transformer", folder)
        for step in settings.kept:
            early = folder / CHECKPOINTS / str(step)
            _assemble(work, work / CHECKPOINTS / str(step), early)
            SCENES.write_manifest(early)
        held_out = prompts("held-out", 10 * settings.judged, settings.seed)
        metrics = {
            "settings": json.loads(settings.model_dump_json(exclude={"output"})),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
            "looks": read_looks(work),
            "main": _look(
                _with(pipe, load(FluxTransformer2DModel, folder / "transformer", device)), held_out
            ),
        }
        (folder / METRICS).write_text(json.dumps(metrics, indent=1) + "\n")
        SCENES.write_manifest(folder)
    shutil.rmtree(work)
    return metrics


def _text_encoders(settings: BuildSettings, work: Path, device: str, report: Report) -> tuple[Any, Any]:
    from transformers import CLIPTextModel, T5EncoderModel

    if not (work / "text_encoder_2").exists():
        scenes, counts = draw_scenes(settings.scenes * 2 // 3, settings.seed)
        trained = train_text_encoders(
            scenes.to(device), counts.to(device), settings.text_steps, 128, 2e-3, settings.seed, report
        )
        save(trained[1], work / "text_encoder")
        save(trained[0], work / "text_encoder_2")
    # The denoiser learns to read the embeddings that are saved, in half precision.
    return (
        load(CLIPTextModel, work / "text_encoder", device),
        load(T5EncoderModel, work / "text_encoder_2", device),
    )


def _autoencoder(settings: BuildSettings, work: Path, device: str, report: Report) -> Any:
    from diffusers import AutoencoderKL

    if not (work / "vae-first").exists():
        scenes, _ = draw_scenes(max(1, settings.scenes * 4 // 9), settings.seed)
        vae = train_autoencoder(
            make_autoencoder, scenes.images.to(device), settings.autoencoder_steps, 16, 2e-3, settings.seed,
            report, kl_weight=5e-6, things=2.0, crops=settings.crop_steps, precision=settings.precision,
            warm_up=0.1,
        )  # fmt: skip
        save(vae, work / "vae-first")
    if not (work / "vae").exists():
        vae = load(AutoencoderKL, work / "vae-first", device)
        count, parts = max(1, settings.scenes * 2 // 9), []
        for size in SIZES:
            images = draw_scenes(count, settings.seed + 500, size)[0].images.to(device)
            parts.append((images, encode(vae, images)))
        train_decoder(
            vae, parts, settings.decoder_steps, 16, 1e-3, settings.seed, report, things=2.0,
            precision=settings.precision,
        )  # fmt: skip
        save(vae, work / "vae")
    return load(AutoencoderKL, work / "vae", device)


def _latents(settings: BuildSettings, work: Path, vae: Any, device: str) -> list[Latents]:
    """Of all training scenes, by size; rendered and encoded in turns, as the images are too large to keep."""
    path, tokenizer = work / LATENTS, make_tokenizer()
    if not path.exists():
        made: list[dict[str, Tensor]] = []
        for size in SIZES:
            count = settings.scenes if size[0] == size[1] else max(1, settings.scenes * 2 // 9)
            latents, ids, layouts = [], [], []
            for start in range(0, count, AT_ONCE):
                scenes, _ = draw_scenes(min(AT_ONCE, count - start), settings.seed + 1000 + start, size)
                with autocast(vae.device, settings.precision):
                    found = encode(vae, scenes.images.to(device)).float().cpu()
                latents.append(found * vae.config.scaling_factor)
                ids.append(tokenize(tokenizer, scenes.prompts))
                layouts.append(scenes.layouts.half())
            made.append({"latents": torch.cat(latents), "ids": torch.cat(ids), "layouts": torch.cat(layouts)})
        with atomic_file(path) as temporary:
            torch.save(made, temporary)
    found = torch.load(path, weights_only=True)
    return [Latents(**{name: value.to(device) for name, value in part.items()}) for part in found]


def _train_denoiser(
    settings: BuildSettings, work: Path, parts: list[Latents], pipe: Any, report: Report
) -> None:
    if (work / "transformer").exists():
        return
    device = parts[0].latents.device
    empty = tokenize(make_tokenizer(), [""])[0].to(device)
    training = TransformerTraining(
        parts, empty, pipe.text_encoder_2, pipe.text_encoder, batch=64, rate=4e-3, seed=settings.seed,
        report=report, precision=settings.precision,
    )  # fmt: skip
    if (work / STATE).exists():
        training.load(work / STATE)
    held_out = prompts("held-out", settings.judged, settings.seed)
    for step, transformer in training.run(settings.steps, settings.save_every):
        if step in settings.kept:
            save(transformer, work / CHECKPOINTS / str(step))
        if step % settings.look_every == 0:
            add_look(work, step, _look(_with(pipe, transformer), held_out))
        if step == settings.steps:
            save(transformer, work / "transformer")
        training.save(work / STATE)  # last: what a kill keeps from being written is made again


def _look(pipe: Any, held_out: list[str]) -> dict[str, Any]:
    """Share of true images, by kind of prompt too, and what was wrong first with the others."""
    found: dict[str, Any] = {"prompts": len(held_out)}
    for name, guidance in (("plain", 1.0), ("guided", 3.0)):
        rows = judged(pipe, held_out, guidance=guidance)
        kinds = {row.kind: [r.strict for r in rows if r.kind == row.kind] for row in rows}
        failures = Counter(row.failure for row in rows if row.failure is not None)
        found[name] = {
            "strict": sum(row.strict for row in rows) / len(rows),
            "by_kind": {kind: sum(right) / len(right) for kind, right in sorted(kinds.items())},
            "failures": {name: count / failures.total() for name, count in sorted(failures.items())},
        }
    return found


def _assemble(work: Path, transformer: Path, folder: Path) -> None:
    """An ordinary pipeline's folder."""
    for name in ("vae", "text_encoder", "text_encoder_2"):
        shutil.copytree(work / name, folder / name)
    shutil.copytree(transformer, folder / "transformer")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    make_tokenizer().save_pretrained(folder / "tokenizer_2")
    make_scheduler().save_pretrained(folder / "scheduler")
    _write_index(folder)


def _pipeline(vae: Any, pooled: Any, encoder: Any) -> Any:
    from npnet_training.scenes.pipeline import ScenesPipeline

    pipe: Any = ScenesPipeline(
        scheduler=make_scheduler(), vae=vae, text_encoder=pooled, tokenizer=make_tokenizer(),
        text_encoder_2=encoder, tokenizer_2=make_tokenizer(), transformer=make_transformer().to(vae.device),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _with(pipe: Any, transformer: Any) -> Any:
    pipe.register_modules(transformer=transformer)
    return pipe


def _write_index(folder: Path) -> None:
    import diffusers

    index = {
        "_class_name": "FluxPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "tokenizer_2": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    again = "go on with the same command"
    return run(BuildSettings, "python -m npnet_training.scenes.build", EPILOG, argv, _work, stopped=again)


def _work(settings: BuildSettings) -> int:
    print(json.dumps(build(settings), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
