"""Train the second judge on renders, and on things that are of no shape: what a denoiser draws when it fails.

`python -m npnet_training.scenes.train_second_judge --output FILE`
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor

from npnet_runtime.files import atomic_file
from npnet_training.command import run
from npnet_training.errors import TrainError
from npnet_training.scenes.data import draw_placed
from npnet_training.scenes.placing import SIZES, Size
from npnet_training.scenes.render import draw
from npnet_training.scenes.second_judge import CELL, MALFORMED, Eyes
from npnet_training.settings import Settings
from npnet_training.shapes.data import rows_of
from npnet_training.shapes.grammar import COLOURS, SHAPES
from npnet_training.shapes.render import PALETTE, Placed, background

EPILOG = """example:
  python -m npnet_training.scenes.train_second_judge --output judge.safetensors
"""
_SUPER = 4  # pixels of a malformed thing's mask to one of the image
_MALFORMED_SHARE = 0.25  # of things
Target = tuple[int, int, float, float, float, int, int]
"""Row and column of a cell; x and y in it, radius; number of the colour, of the shape."""


class SecondJudgeSettings(Settings):
    """How the second judge is trained."""

    output: Path
    """File to write."""
    scenes: int = Field(default=16_000, ge=1)
    """Images, a third of each size."""
    steps: int = Field(default=2500, ge=1)
    """Of AdamW, 64 images each."""
    seed: int = 100_000
    """Of everything random; no image of the denoiser's training has it."""


def train_eyes(settings: SecondJudgeSettings) -> Eyes:
    """Draw images, and train on them."""
    torch.manual_seed(settings.seed)
    data = [examples(max(1, settings.scenes // len(SIZES)), settings.seed, size) for size in SIZES]
    eyes = Eyes()
    optimizer = torch.optim.AdamW(eyes.parameters(), 2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=settings.steps + 1)
    for step in range(settings.steps):
        images, targets = data[step % len(data)]
        rows = rows_of(step // len(data), len(images), 64, settings.seed)
        loss = loss_of(eyes(images[rows]), [targets[row] for row in rows.tolist()])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(eyes.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"second judge step {step}: loss {loss.item():.4f}", file=sys.stderr, flush=True)
    return eyes.eval()


def examples(count: int, seed: int, size: Size) -> tuple[Tensor, list[list[Target]]]:
    """Images (N, 3, H, W) in [0, 1], blurred and noisy at random, and what is in each."""
    images, targets = [], []
    for _, placed, generator in draw_placed(count, seed, size):
        bad = [generator.random() < _MALFORMED_SHARE for _ in placed]
        image, _ = draw([item for item, wrong in zip(placed, bad, strict=True) if not wrong], generator, size)
        if not any(not wrong for wrong in bad):
            image = background(generator, size)
        for item, wrong in zip(placed, bad, strict=True):
            if wrong:
                mask = _malformed(item, generator, size)
                colour = np.array(PALETTE[item.thing.colour], dtype=np.float32)[:, None, None]
                image = image + mask * (colour - image)
        images.append(_worn(image, generator))
        targets.append([_target(item, wrong) for item, wrong in zip(placed, bad, strict=True)])
    return torch.from_numpy(np.stack(images)), targets


def loss_of(read: Tensor, targets: list[list[Target]]) -> Tensor:
    """Of what the eyes read (B, channels, h, w) against what is there."""
    there = torch.zeros_like(read[:, 0])
    cells, places, colours, shapes = [], [], [], []
    for image, found in enumerate(targets):
        for row, column, x, y, radius, colour, shape in found:
            there[image, row, column] = 1
            cells.append((image, row, column))
            places.append((x, y, radius))
            colours.append(colour)
            shapes.append(shape)
    loss = F.binary_cross_entropy_with_logits(read[:, 0], there)
    index = torch.tensor(cells).T
    own = read.movedim(1, -1)[index[0], index[1], index[2]]
    place = torch.cat([own[:, 1:3].sigmoid(), F.softplus(own[:, 3:4])], dim=1)
    loss = loss + F.l1_loss(place, torch.tensor(places) / CELL)
    hue, kind = own[:, 4:].split([len(COLOURS), len(SHAPES) + 1], dim=1)
    loss = loss + F.cross_entropy(hue, torch.tensor(colours))
    return loss + F.cross_entropy(kind, torch.tensor(shapes))


def _target(item: Placed, malformed: bool) -> Target:
    column, x = divmod(item.x, CELL)
    row, y = divmod(item.y, CELL)
    shape = MALFORMED if malformed else SHAPES.index(item.thing.shape)
    return int(row), int(column), x, y, item.radius, COLOURS.index(item.thing.colour), shape


def _worn(image: NDArray[np.float32], generator: random.Random) -> NDArray[np.float32]:
    """As a decoder might give it: a little blurred, a little noisy."""
    picture = Image.fromarray((image.transpose(1, 2, 0) * 255).clip(0, 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(generator.uniform(0, 0.7)))
    noise = np.random.default_rng(generator.getrandbits(63)).normal(
        0, generator.uniform(0, 0.03), image.shape
    )
    pixels: NDArray[np.float32] = np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    worn: NDArray[np.float32] = np.clip(pixels + noise.astype(np.float32), 0, 1)
    return worn


def _malformed(item: Placed, generator: random.Random, size: Size) -> NDArray[np.float32]:
    """How much of each pixel something covers that is none of the shapes, (height, width) in [0, 1]."""
    canvas = Image.new("L", (size[1] * _SUPER, size[0] * _SUPER))
    pen = ImageDraw.Draw(canvas)
    way = generator.choice(("blob", "joined", "cut", "star"))
    if way == "blob":
        corners = generator.randint(5, 9)
        _fill(pen, item, [generator.uniform(0.55, 1.35) for _ in range(corners)], generator.uniform(0, 6.3))
    elif way == "star":
        inner = generator.uniform(0.4, 0.6)
        _fill(pen, item, [1.4 if n % 2 else inner for n in range(10)], generator.uniform(0, 6.3))
    else:
        _fill(pen, item, [1.0] * 24, 0.0)
        angle, far = generator.uniform(0, 6.3), item.radius * generator.uniform(0.7, 1.1)
        x, y = item.x + far * math.cos(angle), item.y + far * math.sin(angle)
        other = Placed(item.thing, x, y, item.radius * generator.uniform(0.6, 0.9))
        _fill(
            pen,
            other,
            [1.0] * (24 if generator.random() < 0.5 else 4),
            0.8,
            ink=255 if way == "joined" else 0,
        )
    small = canvas.resize((size[1], size[0]), Image.Resampling.BOX)
    mask: NDArray[np.float32] = np.asarray(small, dtype=np.float32) / np.float32(255)
    return mask


def _fill(pen: Any, item: Placed, radii: list[float], turn: float, ink: int = 255) -> None:
    step = 2 * math.pi / len(radii)
    points = [
        (
            _SUPER * (item.x + item.radius * radius * math.cos(turn + number * step)),
            _SUPER * (item.y + item.radius * radius * math.sin(turn + number * step)),
        )
        for number, radius in enumerate(radii)
    ]
    pen.polygon(points, fill=ink)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    name = "python -m npnet_training.scenes.train_second_judge"
    return run(SecondJudgeSettings, name, EPILOG, argv, _work)


def _work(settings: SecondJudgeSettings) -> int:
    if settings.output.exists():
        raise TrainError(f"--output {settings.output}: exists; give another, or delete it")
    eyes = train_eyes(settings)
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(settings.output) as temporary:
        save_file({name: value.half().contiguous() for name, value in eyes.state_dict().items()}, temporary)
    print(settings.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
