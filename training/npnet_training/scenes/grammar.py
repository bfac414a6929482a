"""What a prompt of the second world says: one to three groups of things, related or merely there.

    prompt   = group { link group }                at most three groups and four things, no two groups of
                                                   the same colour and shape
    group    = "a" [size] colour shape | number colour shapes
    size     = "small" | "large"                   only in a prompt of at most two groups
    number   = "two" | "three" | "four"
    link     = relation | "and"
    relation = "left of" | "right of" | "above" | "below"

In "two red circles left of a blue square and a green cross" both circles are left of the square, and the
cross is anywhere. So that all prompts fit into all sizes, a second relation is across the first, and two
groups of two are joined by "and".
"""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import dataclass
from functools import cache
from typing import Self

from npnet_training.errors import PromptsError
from npnet_training.shapes.grammar import ALL_THINGS, COLOURS, INVERSE, RELATIONS, SHAPES, Split, Thing

NUMBERS = {"two": 2, "three": 3, "four": 4}
SIZES = ("small", "large")
LINKS = (*RELATIONS, "and")
PLURALS = {shape + ("es" if shape.endswith("s") else "s"): shape for shape in SHAPES}
WORDS = ("a", *SIZES, *COLOURS, *SHAPES, *NUMBERS, *PLURALS, "left", "right", "of", "above", "below", "and")
MAX_GROUPS, MAX_THINGS = 3, 4
HELD_OUT_SHARE = 0.2
_AXIS = {relation: "sideways" if relation.endswith("of") else "upright" for relation in RELATIONS}
KINDS = ("one", "count", "binding", "relation", "chain")
# How often a prompt is of each kind.
_TRAIN_KINDS, _HELD_OUT_KINDS = (0.10, 0.20, 0.20, 0.30, 0.20), (0.0, 0.2, 0.2, 0.35, 0.25)


class ScenesError(PromptsError):
    """A prompt outside the grammar of the second world."""


@dataclass(frozen=True, order=True)
class Group:
    """Things that are alike.

    Args:
        thing: each of them.
        count: how many, 1 to 4.
        size: `small`, `large`, or the empty text where the prompt does not say.
    """

    thing: Thing
    count: int = 1
    size: str = ""

    def __str__(self) -> str:
        if self.count == 1:
            return " ".join(word for word in ("a", self.size, self.thing.colour, self.thing.shape) if word)
        number = next(word for word, count in NUMBERS.items() if count == self.count)
        plural = next(word for word, shape in PLURALS.items() if shape == self.thing.shape)
        return f"{number} {self.thing.colour} {plural}"


@dataclass(frozen=True)
class Scene:
    """What must be true of an image.

    Args:
        groups: in the order of the prompt.
        links: of each group to the next, one fewer than groups; a relation or `and`.
    """

    groups: tuple[Group, ...]
    links: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [str(self.groups[0])]
        for link, group in zip(self.links, self.groups[1:], strict=True):
            words += [link, str(group)]
        return " ".join(words)

    @classmethod
    def parse(cls, prompt: str) -> Self:
        """The scene of a prompt.

        Raises:
            ScenesError: it is outside the grammar.
        """
        words = prompt.lower().split()
        groups, links, place = [], [], 0
        while True:
            group, place = _group(prompt, words, place)
            groups.append(group)
            if place == len(words):
                break
            link = words[place]
            if link in ("left", "right") and words[place + 1 : place + 2] == ["of"]:
                link, place = f"{link} of", place + 1
            if link not in LINKS:
                raise _outside(prompt, f"'{link}' between two groups")
            links.append(link)
            place += 1
        scene = cls(tuple(groups), tuple(links))
        if fault := scene._fault():
            raise _outside(prompt, fault)
        return scene

    def _fault(self) -> str:
        if len(self.groups) > MAX_GROUPS:
            return f"{len(self.groups)} groups"
        if self.total > MAX_THINGS:
            return f"{self.total} things"
        if len({group.thing for group in self.groups}) < len(self.groups):
            return "the same thing in two groups"
        if len(self.groups) > 2 and any(group.size for group in self.groups):
            return "a size among three groups"
        for first, second in itertools.pairwise(self.links):
            if _AXIS.get(first, first) == _AXIS.get(second):
                return f"'{first}' and then '{second}'"
        for one, link, other in self.relations:
            if one.count + other.count > 3:
                return f"'{link}' between two groups of {one.count} and {other.count}"
        return ""

    @property
    def total(self) -> int:
        """How many things there are."""
        return sum(group.count for group in self.groups)

    @property
    def things(self) -> tuple[Group, ...]:
        """Each thing as the group it belongs to, `total` of them."""
        return tuple(group for group in self.groups for _ in range(group.count))

    @property
    def relations(self) -> list[tuple[Group, str, Group]]:
        """Each relation with both of its groups."""
        linked = zip(self.groups, self.links, self.groups[1:], strict=False)
        return [link for link in linked if link[1] != "and"]

    @property
    def kind(self) -> str:
        """What the prompt is about, one of `KINDS`: of two groups, a number, a size or a relation."""
        if len(self.groups) == 3:
            return "chain"
        if any(group.count > 1 for group in self.groups):
            return "count"
        if len(self.groups) == 1:
            return "one"
        return "relation" if self.relations else "binding"

    @property
    def split(self) -> Split:
        """`held-out` if it has a combination that no image of the training split shows."""
        related = any(is_held_out(a.thing, link, b.thing) for a, link, b in self.relations)
        counted = any(
            group.count > 1 and counts_as_held_out(group.thing, group.count) for group in self.groups
        )
        sized = len(self.groups) == 2 and sizes_held_out(
            *((group.thing, group.size) for group in self.groups)
        )
        return "held-out" if related or counted or sized else "train"


def _group(prompt: str, words: list[str], place: int) -> tuple[Group, int]:
    if place >= len(words):
        raise _outside(prompt, "nothing where a group should be")
    word, rest = words[place], words[place + 1 :]
    size = rest.pop(0) if word == "a" and rest[:1] and rest[0] in SIZES else ""
    given = " ".join([word, *([size] if size else []), *rest[:2]])
    if len(rest) < 2 or rest[0] not in COLOURS or (word != "a" and word not in NUMBERS):
        raise _outside(prompt, f"'{given}'")
    shape = rest[1] if word == "a" else PLURALS.get(rest[1])
    if shape not in SHAPES:
        raise _outside(prompt, f"'{given}'")
    return Group(Thing(rest[0], str(shape)), NUMBERS.get(word, 1), size), place + 3 + bool(size)


def _outside(prompt: str, found: str) -> ScenesError:
    return ScenesError(
        "expected 'GROUP [LINK GROUP [LINK GROUP]]', a group being 'a [small|large] COLOUR SHAPE' or "
        f"'two|three|four COLOUR SHAPES', with the colours {', '.join(COLOURS)}, the shapes "
        f"{', '.join(SHAPES)} and the links {', '.join(LINKS)}, of at most {MAX_THINGS} things, "
        "sizes in one or two groups, no thing in two groups, no second relation along the first, and "
        f"relations of at most three things; given {prompt!r}, with {found}"
    )


@cache
def _drawn_out(combination: str) -> bool:
    return hashlib.sha256(combination.encode()).digest()[0] < HELD_OUT_SHARE * 256


def is_held_out(first: Thing, relation: str, second: Thing) -> bool:
    """Whether no training image shows one thing in this relation to another."""
    # A left of B says what B right of A says: both are in the same split.
    if relation in ("right of", "below"):
        first, relation, second = second, INVERSE[relation], first
    return _drawn_out(f"{first} {relation} {second}")


def counts_as_held_out(thing: Thing, count: int) -> bool:
    """Whether no training image shows exactly so many, two or more, of a thing."""
    return _drawn_out(f"{count} {thing}")


def sizes_held_out(first: tuple[Thing, str], second: tuple[Thing, str]) -> bool:
    """Whether no training image shows a small one of one thing beside a large one of another."""
    if {first[1], second[1]} != set(SIZES):
        return False
    small, large = sorted((first, second), key=lambda pair: SIZES.index(pair[1]))
    return _drawn_out(f"small {small[0]} large {large[0]}")


def draw_scene(generator: random.Random, split: Split) -> Scene:
    """A random scene of a split."""
    weights = _TRAIN_KINDS if split == "train" else _HELD_OUT_KINDS
    # The kind is drawn once, so that a split has as many of each as its weights say.
    kind = generator.choices(KINDS, weights)[0]
    while True:
        scene = _draw(generator, kind)
        if not scene._fault() and scene.kind == kind and scene.split == split:
            return scene


def _draw(generator: random.Random, kind: str) -> Scene:
    number = {"one": 1, "count": generator.choice((1, 2, 2)), "chain": 3}.get(kind, 2)
    things = generator.sample(ALL_THINGS, number)
    if kind == "one":
        return Scene((Group(things[0], 1, generator.choice(("", *SIZES))),))
    if kind == "count":
        counts = [generator.choice((2, 3, 4)), generator.choice((1, 1, 2))]
        groups = tuple(Group(thing, count) for thing, count in zip(things, counts, strict=False))
        if generator.random() < 0.5:
            groups = groups[::-1]
        return Scene(groups, tuple(generator.choice(LINKS) for _ in groups[1:]))
    if kind == "binding":
        sizes = generator.choice((("small", "large"), ("large", "small"), ("small", "large"), ("", "")))
        pairs = zip(things, sizes, strict=True)
        return Scene(tuple(Group(thing, 1, size) for thing, size in pairs), ("and",))
    groups = tuple(map(Group, things))
    if kind == "relation":
        return Scene(groups, (generator.choice(RELATIONS),))
    extra = generator.choice((1, 1, 2))
    groups = (*groups[:2], Group(things[2], extra))
    return Scene(groups, (generator.choice(RELATIONS), generator.choice(LINKS)))


def prompts(split: Split, count: int, seed: int = 0) -> list[str]:
    """Distinct prompts of a split.

    Args:
        split: `train`, or `held-out`: each has a relation, a number or a pair of sizes that no training
            image shows.
        count: how many.
        seed: of the draw; the first prompts of a larger count are those of a smaller one.
    """
    generator = random.Random(f"scenes-{split}-{seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(str(draw_scene(generator, split)))
    return list(found)
