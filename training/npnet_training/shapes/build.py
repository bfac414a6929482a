"""Make the shapes model from nothing: `python -m npnet_training.shapes.build --output DIR`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from npnet_runtime.devices import resolve_device
from npnet_runtime.files import atomic_directory
from npnet_training.command import run
from npnet_training.embedded import SHAPES
from npnet_training.sampling import RedenoiseSettings, redenoise
from npnet_training.sampling.denoiser import Denoiser
from npnet_training.settings import Settings
from npnet_training.shapes.building import METRICS, Lines, add_look, begin, load, read_looks, save
from npnet_training.shapes.data import Scenes, draw_scenes
from npnet_training.shapes.grammar import prompts
from npnet_training.shapes.judging import strict_rate
from npnet_training.shapes.networks import make_autoencoder, make_scheduler, make_tokenizer, make_unet
from npnet_training.shapes.train_autoencoder import Report, encode, train_autoencoder, train_decoder
from npnet_training.shapes.train_text_encoder import tokenize, train_text_encoder
from npnet_training.shapes.train_unet import UNetTraining

EPILOG = """example:
  python -m npnet_training.shapes.build --output model
"""
STATE = "denoiser.pt"


class BuildSettings(Settings):
    """How the embedded model is trained. Steps, not seconds, so that it can be repeated."""

    output: Path
    """Folder to write; must not exist. Beside it, OUTPUT.work keeps what is finished until all is: after a
    kill, the same command goes on."""
    seed: int = 0
    """Of everything random; the same seed gives other weights on another kind of device."""
    device: str = "cpu"
    """Where to train: cpu or cuda."""
    scenes: int = Field(default=24000, ge=1)
    """Training images rendered."""
    autoencoder_steps: int = Field(default=800, ge=1)
    """Of the autoencoder, 32 images each."""
    decoder_steps: int = Field(default=600, ge=0)
    """Of its decoder alone, after the denoiser."""
    text_steps: int = Field(default=1500, ge=1)
    """Of the text encoder, 128 prompts each."""
    unet_steps: int = Field(default=3400, ge=1)
    """Of the denoiser, 64 scenes each."""
    weak: int = Field(default=1000, ge=1)
    """Steps after which the denoiser is kept as the weaker one; a multiple of save_every."""
    save_every: int = Field(default=500, ge=1)
    """Steps of the denoiser between two states."""
    look_every: int = Field(default=1000, ge=1)
    """Steps of the denoiser between two looks at how many of its images are true."""
    judged: int = Field(default=100, ge=1)
    """Held-out prompts judged at each look; the finished models are judged on ten times as many."""

    @model_validator(mode="after")
    def _consistent(self) -> BuildSettings:
        if self.weak % self.save_every or self.weak > self.unet_steps:
            raise ValueError(f"weak: expected a multiple of {self.save_every} up to {self.unet_steps}")
        return self


def build(settings: BuildSettings) -> dict[str, Any]:
    """Train all parts, judge them, and write the folder with its manifest.

    Returns:
        The metrics that are written to `metrics.json`.

    Raises:
        TrainError: the work folder is of other settings.
    """
    from diffusers import UNet2DConditionModel

    work = begin(settings.output, settings)
    device, report = str(resolve_device(settings.device)), Lines()
    scenes = draw_scenes(settings.scenes, settings.seed).to(device)
    tokenizer, text = _text_encoder(settings, work, scenes, report)
    vae = _autoencoder(settings, work, scenes, report)
    latents = encode(vae, scenes.images)
    pipe = _pipeline(vae, text, tokenizer)
    _train_denoiser(settings, work, latents * vae.config.scaling_factor, scenes.prompts, pipe, report)
    _decoder(settings, work, vae, scenes, latents, report)
    with atomic_directory(settings.output) as folder:
        for name in ("vae", "text_encoder", "unet", "unet-weak"):
            shutil.copytree(work / name, folder / name)
        tokenizer.save_pretrained(folder / "tokenizer")
        pipe.scheduler.save_pretrained(folder / "scheduler")
        _write_index(pipe, folder)
        held_out = prompts("held-out", 10 * settings.judged, settings.seed)
        metrics = {
            "settings": json.loads(settings.model_dump_json(exclude={"output"})),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
            "looks": read_looks(work),
            "main": _judge(_with(pipe, load(UNet2DConditionModel, folder / "unet", device)), held_out),
            "weak": _judge(_with(pipe, load(UNet2DConditionModel, folder / "unet-weak", device)), held_out),
        }
        (folder / METRICS).write_text(json.dumps(metrics, indent=1) + "\n")
        SHAPES.write_manifest(folder)
    shutil.rmtree(work)
    return metrics


def _text_encoder(settings: BuildSettings, work: Path, scenes: Scenes, report: Report) -> tuple[Any, Any]:
    from transformers import CLIPTextModel

    if not (work / "text_encoder").exists():
        _, text = train_text_encoder(scenes, settings.text_steps, 128, 2e-3, settings.seed, report)
        save(text, work / "text_encoder")
    # The denoiser learns to read the embeddings that are saved, in half precision.
    return make_tokenizer(), load(CLIPTextModel, work / "text_encoder", scenes.images.device)


def _autoencoder(settings: BuildSettings, work: Path, scenes: Scenes, report: Report) -> Any:
    from diffusers import AutoencoderKL

    if not (work / "vae-first").exists():
        vae = train_autoencoder(
            make_autoencoder, scenes.images, settings.autoencoder_steps, 32, 4e-3, settings.seed, report
        )
        save(vae, work / "vae-first")
    return load(AutoencoderKL, work / "vae-first", scenes.images.device)


def _decoder(
    settings: BuildSettings, work: Path, vae: Any, scenes: Scenes, latents: Tensor, report: Report
) -> None:
    from diffusers import AutoencoderKL

    if not (work / "vae").exists():
        train_decoder(
            vae, [(scenes.images, latents)], settings.decoder_steps, 32, 3e-3, settings.seed, report
        )
        save(vae, work / "vae")
    vae.load_state_dict(load(AutoencoderKL, work / "vae", vae.device).state_dict())


def _train_denoiser(
    settings: BuildSettings, work: Path, latents: Tensor, texts: list[str], pipe: Any, report: Report
) -> None:
    if (work / "unet").exists():
        return
    distinct = sorted(set(texts))
    rows = {prompt: row for row, prompt in enumerate(distinct)}
    ids = torch.tensor([rows[prompt] for prompt in texts])
    with torch.no_grad():
        parts = tokenize(pipe.tokenizer, ["", *distinct]).to(latents.device).split(1024)
        embeds = torch.cat([pipe.text_encoder(part).last_hidden_state for part in parts])
    run = UNetTraining(
        latents, ids, embeds[1:], embeds[0], batch=64, rate=1.5e-3, seed=settings.seed, report=report
    )
    if (work / STATE).exists():
        run.load(work / STATE)
    held_out = prompts("held-out", settings.judged, settings.seed)
    for step, unet in run.run(settings.unet_steps, settings.save_every):
        if step == settings.weak:
            save(unet, work / "unet-weak")
        if step % settings.look_every == 0:
            add_look(work, step, _judge(_with(pipe, unet), held_out))
        if step == settings.unet_steps:
            save(unet, work / "unet")
        run.save(work / STATE)  # last: what a kill keeps from being written is made again


def _pipeline(vae: Any, text: Any, tokenizer: Any) -> Any:
    import diffusers

    make: Any = diffusers.StableDiffusionPipeline
    return make(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=make_unet(), scheduler=make_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _with(pipe: Any, unet: Any) -> Any:
    pipe.register_modules(unet=unet)
    return pipe


def _judge(pipe: Any, held_out: list[str]) -> dict[str, float]:
    denoiser = Denoiser(pipe)
    golden = RedenoiseSettings()
    return {
        "prompts": len(held_out),
        "plain": float(strict_rate(pipe, held_out).mean()),
        "plain_guided": float(strict_rate(pipe, held_out, guidance=3.0).mean()),
        "redenoised": float(
            strict_rate(pipe, held_out, lambda noise, c: redenoise(denoiser, noise, c, golden)).mean()
        ),
    }


def _write_index(pipe: Any, folder: Path) -> None:
    import diffusers

    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", type(pipe.scheduler).__name__],
        "text_encoder": ["transformers", type(pipe.text_encoder).__name__],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", type(pipe.vae).__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    again = "go on with the same command"
    return run(BuildSettings, "python -m npnet_training.shapes.build", EPILOG, argv, _work, stopped=again)


def _work(settings: BuildSettings) -> int:
    print(json.dumps(build(settings), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
