"""A labelled grid of images, as one PNG."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from npnet_runtime.files import atomic_file
from npnet_runtime.generate.images import Made

SIDES = (256, 512)  # of an image in the grid, at least and at most
GAP = 12
INK, PAPER, FAINT = "#1b1b1b", "#ffffff", "#6b6b6b"


def write_grid(path: Path, made: list[Made]) -> None:
    """Draw a row a seed, plain beside golden, under each prompt; without plain images, rows of up to 4.

    Args:
        path: of the PNG.
        made: images in the order of a run.
    """
    with Image.open(made[0].path) as first:
        side = max(first.size)
        scale = min(max(side, SIDES[0]), SIDES[1]) / side
        cell = (round(first.width * scale), round(first.height * scale))
    size = max(14, cell[0] // 24)
    font = ImageFont.load_default(size)
    compared = any(item.settings.kind == "plain" for item in made)
    prompts = {
        item.settings.prompt: [m for m in made if m.settings.prompt == item.settings.prompt] for item in made
    }
    columns = 2 if compared else min(4, max(map(len, prompts.values())))
    width = columns * (cell[0] + GAP) + GAP
    characters = max(10, int((width - 2 * GAP) / (0.55 * size)))
    line, caption = round(1.4 * size), round(1.6 * size)

    blocks = []  # (lines of the prompt, its images)
    height = GAP
    for prompt, images in prompts.items():
        lines = textwrap.wrap(prompt, characters) or [""]
        rows = -(-len(images) // columns)
        height += len(lines) * line + rows * (cell[1] + caption) + GAP
        blocks.append((lines, images))

    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = GAP
    for lines, images in blocks:
        for text in lines:
            draw.text((GAP, y), text, INK, font)
            y += line
        for index, item in enumerate(images):
            x = GAP + index % columns * (cell[0] + GAP)
            draw.text((x, y), label(item), FAINT, font)
            with Image.open(item.path) as picture:
                sheet.paste(picture.convert("RGB").resize(cell, Image.Resampling.LANCZOS), (x, y + caption))
            if index % columns == columns - 1 or index == len(images) - 1:
                y += cell[1] + caption
        y += GAP
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG")


def label(item: Made) -> str:
    """What stands above an image."""
    score = "" if item.score is None else f", score {item.score:.4g}"
    return f"{item.settings.kind}, seed {item.settings.seed}{score}"
