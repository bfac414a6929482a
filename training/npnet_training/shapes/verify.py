"""Judge an image: which coloured shapes it shows and where, and whether the facts of a prompt hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from npnet_training.shapes.grammar import SHAPES, Facts, Thing
from npnet_training.shapes.render import PALETTE, coverage

# Of a pixel's strongest over its weakest channel: a thing from there on, background below.
_CHROMA = 0.25
_SMALLEST = 9  # pixels; the smallest thing drawn has 40
# Of a region with the best fitting shape, as intersection over union: below it the region is no shape at all.
# Of true renders 99.9 % have 0.8, blurred with a sigma of 0.9 pixels 0.63; noise has 0.5.
_LEAST_OVERLAP = 0.6
UNKNOWN = "blob"
KINDS = ("count", "colour", "shape", "relation")
_NAMES = tuple(PALETTE)
_COLOURS = np.array([PALETTE[name] for name in _NAMES], dtype=np.float32)
_HUES = _COLOURS - _COLOURS.mean(1, keepdims=True)
_UNIT_HUES = _HUES / np.linalg.norm(_HUES, axis=1, keepdims=True)
_FULL_CHROMA = _COLOURS.max(1) - _COLOURS.min(1)
_TEMPLATE_SIDE = 25
_EIGHT = np.ones((3, 3), dtype=np.int8)  # pixels that touch at a corner belong together


@dataclass(frozen=True)
class Seen:
    """A coloured region found in an image, at its centre of mass in pixels; its shape may be `UNKNOWN`.

    Its radius is that of `coverage` for the same area. It is `touching` if another colour begins where it
    ends, as none does in a true render.
    """

    thing: Thing
    x: float
    y: float
    radius: float = 0.0
    touching: bool = False


@dataclass(frozen=True)
class Verdict:
    """What was found of the facts.

    Args:
        facts: statement -> whether it holds: the number of things and that nothing is extra, each colour,
            each thing, each relation.
        seen: all things found.
    """

    facts: dict[str, bool]
    seen: tuple[Seen, ...]

    @property
    def score(self) -> float:
        """Share of the facts that hold."""
        return sum(self.facts.values()) / len(self.facts)

    @property
    def strict(self) -> bool:
        """Whether all of them do."""
        return all(self.facts.values())


def kind_of(statement: str) -> str:
    """What a statement of `Verdict.facts` is about: one of `KINDS`."""
    if statement == "nothing extra" or statement.endswith(" things"):
        return "count"
    if not statement.endswith(" is there"):
        return "relation"
    return "shape" if statement.startswith("a ") else "colour"


def verify(image: NDArray[np.floating], facts: Facts) -> Verdict:
    """Judge an image.

    Args:
        image: (3, 32, 32) in [0, 1].
        facts: what must be true of it.
    """
    seen = see(image)
    things = [item.thing for item in seen]
    colours = [thing.colour for thing in things]
    found = {f"{len(facts.things)} things": len(seen) >= len(facts.things)}
    found["nothing extra"] = len(seen) <= len(facts.things)
    for thing in facts.things:
        wanted = sum(other.colour == thing.colour for other in facts.things)
        found[f"{thing.colour} is there"] = colours.count(thing.colour) >= wanted
        found[f"{thing} is there"] = thing in things
    for first, relation, second in facts.links:
        found[f"{first} {relation} {second}"] = any(
            _related(a, relation, b) for a in seen for b in seen if (a.thing, b.thing) == (first, second)
        )
    return Verdict(found, seen)


def _related(a: Seen, relation: str, b: Seen) -> bool:
    dx, dy = b.x - a.x, b.y - a.y
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    along = along if relation in ("left of", "above") else -along
    return along > abs(across)


def see(image: NDArray[np.floating]) -> tuple[Seen, ...]:
    """The coloured shapes in an image, (3, H, W) in [0, 1]."""
    image = np.clip(np.asarray(image, dtype=np.float32), 0, 1)
    chroma = image.max(0) - image.min(0)
    hue = image - image.mean(0)
    nearest = np.einsum("kc,chw->khw", _UNIT_HUES, hue).argmax(0)
    strong = chroma > _CHROMA
    seen = []
    for index in np.unique(nearest[strong]):
        others = strong & (nearest != index)
        labels, count = ndimage.label(strong & (nearest == index), _EIGHT)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        for label in range(1, count + 1):
            if sizes[label] >= _SMALLEST:
                # A thing's rim, mixed with the background, is below the threshold: take it along.
                region = ndimage.binary_dilation(labels == label, _EIGHT)
                alpha = np.where(region, np.clip(chroma / _FULL_CHROMA[index], 0, 1), 0)
                touching = bool((ndimage.binary_dilation(region, _EIGHT) & others).any())
                seen.append(_recognise(_NAMES[index], alpha, touching))
    return tuple(seen)


def _recognise(colour: str, alpha: NDArray[np.float32], touching: bool) -> Seen:
    area = alpha.sum()
    rows, columns = np.mgrid[0 : alpha.shape[0], 0 : alpha.shape[1]] + 0.5
    x, y = float((alpha * columns).sum() / area), float((alpha * rows).sum() / area)
    scores = [_overlap(alpha, shape, x, y, area) for shape in SHAPES]
    best = int(np.argmax(scores))
    radius = float(np.sqrt(area / _unit_area(SHAPES[best])))
    shape = SHAPES[best] if scores[best] >= _LEAST_OVERLAP else UNKNOWN
    return Seen(Thing(colour, shape), x, y, radius, touching)


def _overlap(alpha: NDArray[np.float32], shape: str, x: float, y: float, area: float) -> float:
    """Intersection over union with the shape of the same area in the same place."""
    drawn = coverage(shape, x, y, float(np.sqrt(area / _unit_area(shape))), alpha.shape)
    return float(np.minimum(alpha, drawn).sum() / np.maximum(alpha, drawn).sum())


@lru_cache
def _unit_area(shape: str) -> float:
    """Area of a shape of radius 1."""
    radius, centre = _TEMPLATE_SIDE / 3, _TEMPLATE_SIDE / 2
    return float(coverage(shape, centre, centre, radius, _TEMPLATE_SIDE).sum() / radius**2)
