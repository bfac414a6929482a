"""A grid of images as one PNG: plain above golden for each prompt, with the judge's mark."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from npnet_training.demo.drawing import GOLDEN, PLAIN, Drawn

COLUMNS = 6
SIDE, GAP, MARGIN, FONT = 128, 10, 64, 13
CAPTION_LINES, LINE = 4, 16
MARK = 18  # side of the mark in an image's corner
INK, PAPER, RIGHT, WRONG = "#1b1b1b", "#ffffff", "#1a7f37", "#c62828"


def write_grid(path: Path, plain: Sequence[Drawn], golden: Sequence[Drawn]) -> None:
    """Draw pairs from the same seeds, six beside each other.

    Args:
        path: of the PNG.
        plain: images from plain noise.
        golden: those from golden noise, in the same order.
    """
    rows = -(-len(plain) // COLUMNS)
    columns = min(COLUMNS, len(plain))
    block = CAPTION_LINES * LINE + 2 * (SIDE + GAP)
    sheet = Image.new("RGB", (MARGIN + columns * (SIDE + GAP), GAP + rows * block), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT)
    for index, pair in enumerate(zip(plain, golden, strict=True)):
        row, column = divmod(index, COLUMNS)
        x, y = MARGIN + column * (SIDE + GAP), GAP + row * block
        lines = textwrap.wrap(pair[0].prompt, 19)
        for number, line in enumerate(lines, CAPTION_LINES - len(lines)):
            draw.text((x, y + number * LINE), line, INK, font)
        y += CAPTION_LINES * LINE
        for name, drawn in zip((PLAIN, GOLDEN), pair, strict=True):
            if column == 0:
                draw.text((GAP, y + SIDE // 2 - LINE // 2), name, INK, font)
            sheet.paste(enlarged(drawn.image, SIDE), (x, y))
            _mark(draw, x, y, right=drawn.verdict.strict)
            y += SIDE + GAP
    sheet.save(path, format="PNG")


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """The same pixels, larger."""
    return image.convert("RGB").resize((side, side), Image.Resampling.NEAREST)


def _mark(draw: ImageDraw.ImageDraw, x: int, y: int, *, right: bool) -> None:
    """A tick or a cross in the lower right corner: told apart by its form, not by colour alone."""
    left, top = x + SIDE - MARK, y + SIDE - MARK
    draw.rectangle((left, top, x + SIDE - 1, y + SIDE - 1), RIGHT if right else WRONG)
    tick, cross = [[(4, 9), (8, 13), (14, 4)]], [[(4, 4), (13, 13)], [(13, 4), (4, 13)]]
    for stroke in tick if right else cross:
        draw.line([(left + dx, top + dy) for dx, dy in stroke], PAPER, 2)
