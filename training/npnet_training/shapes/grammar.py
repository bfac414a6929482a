"""What a prompt of the world says: one to three coloured shapes, each related to the one before it.

    prompt   = object { relation object }          at most three objects, no two alike,
                                                   no relation followed by its inverse
    object   = "a" colour shape
    relation = "left of" | "right of" | "above" | "below"

In "a red circle left of a blue square above a green cross" the circle is left of the square, and the
square is above the cross.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from npnet_training.errors import PromptsError

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "cross")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(INVERSE)
_WORDS = {"a", *COLOURS, *SHAPES, *(relation.replace(" ", "-") for relation in RELATIONS)}
MAX_OBJECTS = 3
HELD_OUT_SHARE = 0.2
Split = Literal["train", "held-out"]
# How often a prompt has one, two or three objects.
_TRAIN_COUNTS, _HELD_OUT_COUNTS = (0.15, 0.65, 0.20), (0.0, 0.8, 0.2)


class ShapesError(PromptsError):
    """A prompt outside the grammar of the shapes world."""


@dataclass(frozen=True, order=True)
class Thing:
    """A coloured shape."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape}"


ALL_THINGS = tuple(Thing(colour, shape) for colour in COLOURS for shape in SHAPES)


@dataclass(frozen=True)
class Facts:
    """What must be true of an image.

    Args:
        things: in the order of the prompt.
        relations: of each thing to the next, one fewer than things.
    """

    things: tuple[Thing, ...]
    relations: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [str(self.things[0])]
        for relation, thing in zip(self.relations, self.things[1:], strict=True):
            words += [relation, str(thing)]
        return " ".join(words)

    @classmethod
    def parse(cls, prompt: str) -> Self:
        """Facts of a prompt.

        Raises:
            ShapesError: it is outside the grammar.
        """
        words = prompt.lower().replace("left of", "left-of").replace("right of", "right-of").split()
        if len(words) % 4 != 3 or len(words) > 4 * MAX_OBJECTS - 1:
            strange = [word for word in words if word not in _WORDS]
            raise _outside(prompt, f"the word '{strange[0]}'" if strange else f"{len(words)} words")
        things, relations = [], []
        for place in range(0, len(words), 4):
            article, colour, shape = words[place : place + 3]
            if article != "a" or colour not in COLOURS or shape not in SHAPES:
                raise _outside(prompt, f"'{article} {colour} {shape}'")
            things.append(Thing(colour, shape))
        for word in words[3::4]:
            relation = word.replace("-", " ")
            if relation not in RELATIONS:
                raise _outside(prompt, f"the relation '{relation}'")
            relations.append(relation)
        if len(set(things)) < len(things):
            raise _outside(prompt, "the same thing twice")
        if _goes_back(relations):
            raise _outside(prompt, f"'{relations[0]}' and then '{relations[1]}'")
        return cls(tuple(things), tuple(relations))

    @property
    def links(self) -> list[tuple[Thing, str, Thing]]:
        """Each relation with both of its things."""
        return list(zip(self.things, self.relations, self.things[1:], strict=False))

    @property
    def split(self) -> Split:
        """`held-out` if any two related things are a combination that is never trained on."""
        return "held-out" if any(_is_held_out(*link) for link in self.links) else "train"


def _outside(prompt: str, found: str) -> ShapesError:
    return ShapesError(
        f"expected 'a COLOUR SHAPE [RELATION a COLOUR SHAPE [RELATION a COLOUR SHAPE]]' with the colours "
        f"{', '.join(COLOURS)}, the shapes {', '.join(SHAPES)} and the relations {', '.join(RELATIONS)}, "
        f"no thing twice and no relation followed by its opposite; given {prompt!r}, with {found}"
    )


def _goes_back(relations: Sequence[str]) -> bool:
    # Going back undoes the way there: a square between two others is not left of both.
    return any(b == INVERSE[a] for a, b in itertools.pairwise(relations))


def _is_held_out(first: Thing, relation: str, second: Thing) -> bool:
    # A left of B says what B right of A says: both are in the same split.
    if relation in ("right of", "below"):
        first, relation, second = second, INVERSE[relation], first
    digest = hashlib.sha256(f"{first} {relation} {second}".encode()).digest()
    return digest[0] < HELD_OUT_SHARE * 256


def draw_facts(generator: random.Random, split: Split) -> Facts:
    """Random facts of a split."""
    weights = _TRAIN_COUNTS if split == "train" else _HELD_OUT_COUNTS
    while True:
        count = generator.choices((1, 2, 3), weights)[0]
        things = tuple(generator.sample(ALL_THINGS, count))
        relations = tuple(generator.choice(RELATIONS) for _ in range(count - 1))
        if _goes_back(relations):
            continue
        facts = Facts(things, relations)
        if facts.split == split:
            return facts


def prompts(split: Split, count: int, seed: int = 0) -> list[str]:
    """Distinct prompts of a split.

    Args:
        split: `train`, or `held-out`: each of those relates two things in a way never trained on.
        count: how many.
        seed: of the draw; the first prompts of a larger count are those of a smaller one.
    """
    generator = random.Random(f"{split}-{seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(str(draw_facts(generator, split)))
    return list(found)
