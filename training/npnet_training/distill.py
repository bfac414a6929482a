"""Distil a few-step model: `python -m npnet_training.distill --model shapes --output DIR`.

Progressive distillation (Salimans and Ho, arXiv 2202.00512, section 3) in one stage: the student's one step
is taught to land where several steps of the teacher, DDIM's or Euler's, with guidance, do.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from npnet_runtime.files import atomic_directory
from npnet_runtime.integrations.diffusers.checks import denoiser_name
from npnet_training.command import run
from npnet_training.embedded import find_embedded
from npnet_training.errors import TrainError
from npnet_training.models import load_pipeline
from npnet_training.prompts import read_prompts
from npnet_training.sampling import Conditioning, Denoiser, draw_noise
from npnet_training.sampling.redenoise import at_level
from npnet_training.settings import Settings
from npnet_training.shapes.data import rows_of

EPILOG = """examples:
  python -m npnet_training.distill --model shapes --output few-step
  python -m npnet_training.distill --model scenes --steps 4 --teacher-steps 12 --rank 32 --output few-step
"""
AVERAGE = 0.99


class DistillSettings(Settings):
    """Teach a copy of a model to sample in a few steps, without guidance."""

    output: Path
    """Folder of the new model, an ordinary diffusers pipeline, or with --rank of the LoRA; must not exist."""
    model: str = "shapes"
    """The teacher."""
    prompts: str | None = None
    """Prompts to follow it on, as npnet-collect takes them; of an embedded model those of its world."""
    steps: int = Field(default=2, ge=1)
    """Of the student."""
    teacher_steps: int = Field(default=10, ge=2)
    """Of the teacher; a multiple of the student's."""
    guidance: float = Field(default=3.0, ge=0)
    """Of the teacher."""
    rank: int = Field(default=0, ge=0)
    """Of the LoRA in every linear layer that the student is; 0 for all weights of its own."""
    trajectories: int = Field(default=4000, ge=1)
    """Noises with prompts that the teacher is followed from."""
    train_steps: int = Field(default=800, ge=1)
    """Of AdamW, each with a batch of 64 in which every step of the student is learned."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Highest; falls linearly to zero."""
    seed: int = Field(default=500_000, ge=0)
    """Of the first noise, and of the order."""
    device: str = "cpu"
    """Where to train."""

    @model_validator(mode="after")
    def _consistent(self) -> DistillSettings:
        if self.teacher_steps % self.steps:
            raise ValueError(f"teacher_steps {self.teacher_steps} must be a multiple of steps {self.steps}")
        if self.prompts is None and find_embedded(self.model) is None:
            raise ValueError(f"prompts: expected a source of prompts for the model {self.model}")
        return self

    @property
    def source(self) -> str:
        """Of the prompts."""
        embedded = find_embedded(self.model)
        of_world = f"{embedded[0].name}:train:{self.trajectories}:{self.seed}" if embedded else ""
        return self.prompts or of_world


def distill(settings: DistillSettings) -> None:
    """Make the trajectories, train the student, and write the folder.

    Raises:
        TrainError: the folder exists.
        ModelError: the teacher cannot be loaded.
        PromptsError: of the prompts.
    """
    if settings.output.exists():
        raise TrainError(f"--output {settings.output}: exists; give another, or delete it")
    texts = [prompt.text for prompt in islice(read_prompts(settings.source), settings.trajectories)]
    pipe, _ = load_pipeline(settings.model, device=settings.device)
    denoiser = Denoiser(pipe)
    parts = [
        _follow(denoiser, texts[start : start + 64], settings.seed + start, settings)
        for start in range(0, len(texts), 64)
    ]
    states = torch.cat([states for states, _ in parts])
    student = _train(denoiser, states, Conditioning.cat([part for _, part in parts]), settings)
    with atomic_directory(settings.output) as folder:
        if settings.rank:
            _write_lora(student, pipe, folder)
        else:
            whole = _with(pipe, student).to(dtype=torch.float16)
            whole.save_pretrained(folder, safe_serialization=True)


@torch.no_grad()
def _follow(
    denoiser: Denoiser, texts: list[str], seed: int, settings: DistillSettings
) -> tuple[Tensor, Conditioning]:
    """Latents at the student's timesteps and at the end, (B, steps + 1, C, H, W), and their prompts."""
    conditioning = denoiser.encode(texts, unconditional=settings.guidance > 1)
    latents = draw_noise(range(seed, seed + len(texts)), denoiser.latent_shape).to(denoiser.device)
    timesteps = denoiser.timesteps(settings.teacher_steps).tolist()
    levels = [*map(denoiser.schedule.level, timesteps[1:]), denoiser.schedule.final]
    kept = [latents]
    for number, (timestep, level) in enumerate(zip(timesteps, levels, strict=True), 1):
        latents = at_level(denoiser.denoise(latents, timestep, conditioning, settings.guidance), level)
        if number % (settings.teacher_steps // settings.steps) == 0:
            kept.append(latents)
    return torch.stack(kept, dim=1), Conditioning(conditioning.positive, None, conditioning.texts)


def _train(denoiser: Denoiser, states: Tensor, conditioning: Conditioning, settings: DistillSettings) -> Any:
    """The student, its weights averaged."""
    student = _student(denoiser.network, settings.rank)
    denoiser = Denoiser(_with(denoiser.pipe, student))
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    average = [parameter.detach().clone() for parameter in trained]
    optimizer = torch.optim.AdamW(trained, settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, settings.train_steps)
    for step, rows in _batches(settings, len(states)):
        loss = torch.zeros((), device=states.device)
        for found, target in _steps(denoiser, states[rows], conditioning[rows.tolist()], settings.steps):
            loss = loss + (found - target).square().mean() / settings.steps
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        decay = min(AVERAGE, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(average, [parameter.detach() for parameter in trained], 1 - decay)
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}", file=sys.stderr, flush=True)
    with torch.no_grad():
        for parameter, value in zip(trained, average, strict=True):
            parameter.copy_(value)
    return student.eval()


def _student(teacher: Any, rank: int) -> Any:
    """A copy of the teacher to train, or one whose low-rank parts alone are trained."""
    student = copy.deepcopy(teacher).train().requires_grad_(not rank)
    if rank:
        from peft import LoraConfig

        student.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear"))
    return student


def _batches(settings: DistillSettings, count: int) -> Iterator[tuple[int, Tensor]]:
    size = max(1, 64 // settings.steps)
    for step in range(settings.train_steps):
        yield step, rows_of(step, count, size, settings.seed)


def _steps(
    denoiser: Denoiser, states: Tensor, conditioning: Conditioning, steps: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each step of the student the clean latents it predicts, and those that end where the teacher did.

    With x_s = alpha_s x + sigma_s (x_t - alpha_t x) / sigma_t for the clean latents x: the paper's
    equation of the target, in its appendix G.
    """
    timesteps = denoiser.timesteps(steps).tolist()
    levels = [*map(denoiser.schedule.level, timesteps), denoiser.schedule.final]
    for index, timestep in enumerate(timesteps):
        here, there = levels[index], levels[index + 1]
        ratio = there.sigma / here.sigma
        target = (states[:, index + 1] - ratio * states[:, index]) / (there.alpha - ratio * here.alpha)
        found = denoiser.denoise(states[:, index], timestep, conditioning, 1.0).clean
        yield found, target


def _with(pipe: Any, network: Any) -> Any:
    """The same pipeline with another denoiser."""
    found = copy.copy(pipe)
    setattr(found, denoiser_name(pipe), network)
    return found


def _write_lora(student: Any, pipe: Any, folder: Path) -> None:
    """As diffusers loads it: `pipe.load_lora_weights(folder)`."""
    from peft.utils import get_peft_model_state_dict

    layers = {key: value.half().contiguous() for key, value in get_peft_model_state_dict(student).items()}
    pipe.save_lora_weights(folder, **{f"{denoiser_name(pipe)}_lora_layers": layers})


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run(DistillSettings, "python -m npnet_training.distill", EPILOG, argv, _work)


def _work(settings: DistillSettings) -> int:
    distill(settings)
    print(settings.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
