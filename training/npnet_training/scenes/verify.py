"""The judge that rewards and selections see: what an image shows and where, and whether a scene holds."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from npnet_training.scenes.grammar import Group, Scene
from npnet_training.scenes.placing import BETWEEN_SIZES, radius_of, relation_of
from npnet_training.shapes.verify import UNKNOWN, Seen, Verdict, see

FAILURES = ("shape", "colour", "count", "binding", "placement")
FACTS = ("count", "colour", "thing", "size", "relation")
_ONE_THING = 1.1  # a region is of more than one thing, or of a piece, from so many times its radius on


def verify(image: NDArray[np.floating], scene: Scene) -> Verdict:
    """Judge an image.

    Args:
        image: (3, H, W) in [0, 1].
        scene: what must be true of it.

    Returns:
        Its facts: the number of things, those of each colour, each group, each group's size, each relation.
    """
    return judge(see(image), scene)


def judge(seen: Iterable[Seen], scene: Scene) -> Verdict:
    """The verdict on things that were seen, by whichever eyes."""
    seen = tuple(seen)
    facts = {f"{scene.total} things": len(seen) == scene.total}
    members = {group: [item for item in seen if item.thing == group.thing] for group in scene.groups}
    for colour in dict.fromkeys(group.thing.colour for group in scene.groups):
        wanted = sum(group.count for group in scene.groups if group.thing.colour == colour)
        facts[f"{wanted} of {colour}"] = sum(item.thing.colour == colour for item in seen) == wanted
    for group, found in members.items():
        facts[f"{group} there"] = len(found) == group.count
    for group, found in members.items():
        if group.size:
            facts[f"{group.thing} is {group.size}"] = bool(found) and all(
                _sized(item, group) for item in found
            )
    for first, relation, second in scene.relations:
        pairs = [(a, b) for a in members[first] for b in members[second]]
        held = bool(pairs) and all(relation_of(b.x - a.x, b.y - a.y) == relation for a, b in pairs)
        facts[f"{first} {relation} {second}"] = held
    return Verdict(facts, seen)


def _sized(item: Seen, group: Group) -> bool:
    return (item.radius < BETWEEN_SIZES) == (group.size == "small")


def fact_of(statement: str) -> str:
    """What a statement of a verdict is about: one of `FACTS`."""
    if statement.endswith(" things"):
        return "count"
    if statement.endswith(" there"):
        return "thing"
    if statement.endswith((" is small", " is large")):
        return "size"
    return "colour" if statement.split()[1] == "of" else "relation"


def failure_of(verdict: Verdict, scene: Scene) -> str | None:
    """What is wrong first with an image, one of `FAILURES`; None if nothing is.

    `binding`: the right words on the wrong things: shapes or sizes exchanged, or things of two colours grown
    into one another. `count`: too many or too few, things of one colour grown into one another among them.
    `shape`: something of the size of a thing has no shape, or one that the prompt does not have. `colour`: a
    colour that nobody asked for. `placement`: a relation is broken.
    """
    if verdict.strict:
        return None
    seen, things = verdict.seen, scene.things
    blobs = [item for item in seen if item.thing.shape == UNKNOWN]
    if any(item.touching for item in blobs):
        return "binding"
    least = min(radius_of(scene, group)[0] for group in things) / _ONE_THING
    most = max(radius_of(scene, group)[1] for group in things) * _ONE_THING
    if any(not least < item.radius < most for item in blobs):
        return "count"
    if blobs:
        return "shape"
    if len(seen) != scene.total:
        return "count"
    if not {item.thing.colour for item in seen} <= {group.thing.colour for group in things}:
        return "colour"
    if not {item.thing.shape for item in seen} <= {group.thing.shape for group in things}:
        return "shape"
    if sorted(item.thing for item in seen) != sorted(group.thing for group in things):
        return "binding"
    if any(not held for fact, held in verdict.facts.items() if fact_of(fact) == "size"):
        return "binding"
    return "placement"
