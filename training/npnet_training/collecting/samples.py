"""A page with the first images of a dataset."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from npnet_runtime.files import atomic_file
from npnet_training.pairs.shard import Pairs

_HEAD = """<!doctype html><meta charset="utf-8"><title>Noise pairs</title>
<style>body{font-family:sans-serif}figure{display:inline-block;margin:8px;width:300px;vertical-align:top}
img{width:140px;image-rendering:auto}figcaption{font-size:12px}.kept{background:#e2f4e2}</style>
<h1>Noise pairs</h1><p>Left: from the source noise. Right: from the re-denoised noise. Green: kept.</p>
"""


def write_samples(folder: Path, pairs: Pairs, plain: list[Any], golden: list[Any]) -> None:
    """Add the given images of the first pairs to `samples/`, and to its page."""
    samples = folder / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    for row, both in enumerate(zip(plain, golden, strict=True)):
        number = pairs.index[row]
        for arm, image in zip(("plain", "redenoised"), both, strict=True):
            image.save(samples / f"{number:06d}-{arm}.png")
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
        (samples / f"{number:06d}.html").write_text(figure, encoding="utf-8")
    with atomic_file(samples / "index.html") as temporary:
        parts = [path.read_text(encoding="utf-8") for path in sorted(samples.glob("[0-9]*.html"))]
        temporary.write_text(_HEAD + "".join(parts), encoding="utf-8")
