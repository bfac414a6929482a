"""A page with the first images of a dataset."""

from __future__ import annotations

import html
import io
from typing import Any

from npnet_training.errors import DatasetError
from npnet_training.pairs.shard import Pairs
from npnet_training.storage import Location, listed, read_bytes, write_bytes

_HEAD = """<!doctype html><meta charset="utf-8"><title>Noise pairs</title>
<style>body{font-family:sans-serif}figure{display:inline-block;margin:8px;width:300px;vertical-align:top}
img{width:140px;image-rendering:auto}figcaption{font-size:12px}.kept{background:#e2f4e2}</style>
<h1>Noise pairs</h1><p>Left: from the source noise. Right: from the re-denoised noise. Green: kept.</p>
"""


def write_samples(folder: Location, pairs: Pairs, plain: list[Any], golden: list[Any]) -> None:
    """Add the given images of the first pairs to `samples/`, and to its page.

    Raises:
        DatasetError: they cannot be written.
    """
    try:
        _write(folder / "samples", pairs, plain, golden)
    except OSError as error:
        raise DatasetError(
            f"{folder}: cannot write the samples ({error}); make room, then go on with --resume"
        ) from error


def _write(samples: Location, pairs: Pairs, plain: list[Any], golden: list[Any]) -> None:
    for row, both in enumerate(zip(plain, golden, strict=True)):
        number = pairs.index[row]
        for arm, image in zip(("plain", "redenoised"), both, strict=True):
            picture = io.BytesIO()
            image.save(picture, "png")
            write_bytes(samples / f"{number:06d}-{arm}.png", picture.getvalue())
        names = [f"{number:06d}-{arm}.png" for arm in ("plain", "redenoised")]
        scores = "; ".join(
            f"{name} {before[row]:.4g} → {pairs.redenoised[name][row]:.4g}"
            for name, before in pairs.plain.items()
        )
        figure = (
            f'<figure class="{"kept" if pairs.kept[row] else "left-out"}">'
            + "".join(f'<img src="{name}" alt="">' for name in names)
            + f"<figcaption>{html.escape(pairs.prompts[row])}<br>{html.escape(scores)}</figcaption>"
            + "</figure>\n"
        )
        write_bytes(samples / f"{number:06d}.html", figure.encode())
    parts = [read_bytes(path) for path in listed(samples, ".html") if path.name[0].isdigit()]
    write_bytes(samples / "index.html", b"".join([_HEAD.encode(), *parts]))
