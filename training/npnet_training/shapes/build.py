"""Make the shapes model from nothing: `python -m npnet_training.shapes.build --output DIR`."""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from npnet_runtime.errors import NPNetError
from npnet_runtime.files import atomic_directory
from npnet_runtime.golden import resolve_device
from npnet_training.sampling import RedenoiseSettings, redenoise
from npnet_training.sampling.denoiser import Denoiser
from npnet_training.settings import Settings, parse
from npnet_training.shapes.assets import write_manifest
from npnet_training.shapes.data import draw_scenes
from npnet_training.shapes.grammar import prompts
from npnet_training.shapes.judging import strict_rate
from npnet_training.shapes.networks import make_scheduler
from npnet_training.shapes.train_autoencoder import encode, train_autoencoder
from npnet_training.shapes.train_text_encoder import tokenize, train_text_encoder
from npnet_training.shapes.train_unet import train_unet


class BuildSettings(Settings):
    """How the embedded model is trained. Steps, not seconds, so that it can be repeated."""

    output: Path
    """Folder to write; must not exist."""
    seed: int = 0
    """Of everything random; the same seed gives other weights on another kind of device."""
    device: str = "cpu"
    """Where to train: cpu or cuda."""
    scenes: int = Field(default=16000, ge=1)
    """Training images rendered."""
    autoencoder_steps: int = Field(default=2000, ge=1)
    """Of the autoencoder, 32 images each."""
    text_steps: int = Field(default=800, ge=1)
    """Of the text encoder, 128 prompts each."""
    unet_steps: int = Field(default=2000, ge=1)
    """Of the learning-rate schedule of the denoiser, 64 scenes each."""
    save_every: int = Field(default=250, ge=1)
    """Steps between two looks at the denoiser."""
    main: int = Field(default=2000, ge=1)
    """Steps after which the denoiser is the main one; a multiple of save_every."""
    weak: int = Field(default=500, ge=1)
    """Steps after which it is the weaker one, of the same run."""
    judged: int = Field(default=300, ge=1)
    """Held-out prompts judged at each look; the main and the weak one are judged on five times as many."""


def build(settings: BuildSettings) -> dict[str, Any]:
    """Train all parts, judge them, and write the folder with its manifest.

    Returns:
        The metrics that are written to `metrics.json`.
    """
    import diffusers

    make_pipeline: Any = diffusers.StableDiffusionPipeline
    began = time.perf_counter()
    report = _Report(began)
    device = str(resolve_device(settings.device))
    scenes = draw_scenes(settings.scenes, settings.seed).to(device)
    vae = train_autoencoder(scenes, settings.autoencoder_steps, 32, 4e-3, settings.seed, report)
    latents = encode(vae, scenes.images) * vae.config.scaling_factor
    tokenizer, text = train_text_encoder(scenes, settings.text_steps, 128, 2e-3, settings.seed, report)
    text = text.half().float()  # the denoiser learns to read the embeddings that are saved
    distinct = sorted(set(scenes.prompts))
    rows = {prompt: row for row, prompt in enumerate(distinct)}
    ids = torch.tensor([rows[prompt] for prompt in scenes.prompts])
    with torch.no_grad():
        parts = tokenize(tokenizer, ["", *distinct]).to(device).split(1024)
        embeds = torch.cat([text(part).last_hidden_state for part in parts])
    held_out = prompts("held-out", 5 * settings.judged, settings.seed)
    looks: list[dict[str, Any]] = []
    with atomic_directory(settings.output) as folder:
        pipe: Any = None
        for step, unet in train_unet(
            latents, ids, embeds[1:], embeds[0], settings.unet_steps, 64, 2e-3, settings.seed,
            settings.save_every, report,
        ):  # fmt: skip
            pipe = make_pipeline(
                vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=make_scheduler(),
                safety_checker=None, feature_extractor=None, requires_safety_checker=False,
            )  # fmt: skip
            chosen = [name for name in ("main", "weak") if getattr(settings, name) == step]
            looks.append({"step": step, **_judge(pipe, held_out if chosen else held_out[: settings.judged])})
            print(json.dumps(looks[-1]), file=sys.stderr, flush=True)
            for name in chosen:
                _save(unet, folder / ("unet" if name == "main" else f"unet-{name}"))
        if pipe is None or not (folder / "unet").is_dir():
            raise NPNetError("--main: expected a multiple of --save-every up to --unet-steps")
        del pipe.unet
        for name in ("vae", "text_encoder"):
            _save(getattr(pipe, name), folder / name)
        tokenizer.save_pretrained(folder / "tokenizer")
        pipe.scheduler.save_pretrained(folder / "scheduler")
        _write_index(pipe, folder)
        metrics = {
            "settings": json.loads(settings.model_dump_json(exclude={"output"})),
            "seconds": round(time.perf_counter() - began),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
            "denoiser": looks,
        }
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        write_manifest(folder)
    return metrics


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


def _save(part: Any, folder: Path) -> None:
    copy.deepcopy(part).cpu().half().save_pretrained(folder, safe_serialization=True)


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


class _Report:
    """One line a hundred steps."""

    def __init__(self, began: float) -> None:
        self.began = began

    def __call__(self, stage: str, step: int, loss: float) -> None:
        if step % 100 == 0:
            passed = time.perf_counter() - self.began
            print(f"{passed:6.0f} s  {stage} step {step}: loss {loss:.4f}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    try:
        metrics = build(parse(BuildSettings, "python -m npnet_training.shapes.build", argv))
    except NPNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(metrics, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
