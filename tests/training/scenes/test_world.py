"""The second world: what prompts say, where things are, what the judge makes of it."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from npnet_training.errors import PromptsError
from npnet_training.scenes.data import draw_placed, draw_scenes
from npnet_training.scenes.grammar import (
    KINDS,
    Group,
    Scene,
    ScenesError,
    counts_as_held_out,
    is_held_out,
    prompts,
    sizes_held_out,
)
from npnet_training.scenes.placing import RADII, SIZES, place, relation_of
from npnet_training.scenes.render import draw, render
from npnet_training.scenes.verify import failure_of, judge, verify
from npnet_training.shapes.grammar import Thing
from npnet_training.shapes.render import Placed, paint
from npnet_training.shapes.verify import UNKNOWN, Seen, see

CIRCLE, SQUARE, CROSS = Thing("red", "circle"), Thing("blue", "square"), Thing("green", "cross")


def test_parses_what_it_writes() -> None:
    for prompt in prompts("train", 300) + prompts("held-out", 300):
        scene = Scene.parse(prompt)
        assert str(scene) == prompt
        assert len(prompt.split()) <= 13
        assert 1 <= scene.total <= 4


def test_parses_numbers_sizes_and_links() -> None:
    scene = Scene.parse("Two red circles left of a blue square and a green cross")
    assert scene.groups == (Group(CIRCLE, 2), Group(SQUARE), Group(CROSS))
    assert scene.links == ("left of", "and")
    assert scene.total == 4
    assert scene.relations == [(Group(CIRCLE, 2), "left of", Group(SQUARE))]
    scene = Scene.parse("a small blue square and a large green cross")
    assert [group.size for group in scene.groups] == ["small", "large"]
    assert [Scene.parse(text).kind for text in ("a red circle", "three red circles", str(scene))] == [
        "one",
        "count",
        "binding",
    ]


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("", "nothing where a group should be"),
        ("a photograph of a dog", "'a photograph of'"),
        ("five red circles", "'five red circles'"),
        ("two red circle", "'two red circle'"),
        ("a red circles", "'a red circles'"),
        ("two small red circles", "'two small red'"),
        ("a red circle near a blue square", "'near' between two groups"),
        ("a red circle and", "nothing where a group should be"),
        ("three red circles and two blue squares", "5 things"),
        ("a red circle and a blue square and a green cross and a red cross", "4 groups"),
        ("a red circle and two red circles", "the same thing in two groups"),
        ("a small red circle and a blue square and a green cross", "a size among three groups"),
        ("a red circle left of a blue square right of a green cross", "'left of' and then 'right of'"),
        ("a red circle above a blue square above a green cross", "'above' and then 'above'"),
        ("two red circles above two blue squares", "'above' between two groups of 2 and 2"),
    ],
)
def test_says_what_it_understands(prompt: str, found: str) -> None:
    with pytest.raises(ScenesError, match=found) as caught:
        Scene.parse(prompt)
    assert isinstance(caught.value, PromptsError)


def test_prompts_are_of_every_kind_distinct_seeded_and_extend() -> None:
    some = prompts("held-out", 400, seed=3)
    assert len(set(some)) == 400
    assert prompts("held-out", 500, seed=3)[:400] == some
    assert prompts("held-out", 400, seed=4) != some
    kinds = Counter(Scene.parse(prompt).kind for prompt in some)
    assert set(kinds) == set(KINDS) - {"one"}
    assert min(kinds.values()) > 30
    assert all(Scene.parse(prompt).split == "held-out" for prompt in some)
    assert {Scene.parse(prompt).kind for prompt in prompts("train", 300)} == set(KINDS)


def test_no_training_image_shows_what_is_held_out() -> None:
    """Of all pairs of things in an image, not those of its prompt alone."""
    for size in SIZES:
        for scene, placed, _ in draw_placed(300, 0, size):
            assert scene.split == "train"
            for a, b in itertools.permutations(placed, 2):
                relation = relation_of(b.x - a.x, b.y - a.y)
                if a.thing != b.thing and relation is not None:
                    assert not is_held_out(a.thing, relation, b.thing)
                if a.radius <= RADII["small"][1] and b.radius >= RADII["large"][0]:
                    assert not sizes_held_out((a.thing, "small"), (b.thing, "large"))
            for thing, count in Counter(item.thing for item in placed).items():
                assert count == 1 or not counts_as_held_out(thing, count)
    shares = [
        sum(is_held_out(a, relation, b) for a, b in itertools.permutations([CIRCLE, SQUARE, CROSS], 2))
        for relation in ("left of", "right of")
    ]
    assert shares[0] == shares[1]  # the same said the other way round is in the same split


@pytest.mark.parametrize("size", SIZES)
def test_every_prompt_fits_into_every_size_and_is_judged_true(size: tuple[int, int]) -> None:
    generator = random.Random(1)
    scenes = [Scene.parse(prompt) for prompt in prompts("held-out", 300)]
    right = wrong = 0
    for number, scene in enumerate(scenes):
        image = render(scene, generator, size)
        assert image.shape == (3, *size)
        right += verify(image, scene).strict
        wrong += verify(image, scenes[number - 1]).strict
    assert right >= 299
    assert wrong == 0


def test_hard_negatives_are_judged_false() -> None:
    """One thing changed: a relation turned round, a number, sizes or colours exchanged."""
    pairs = [
        ("a red circle left of a blue square", "a red circle right of a blue square"),
        ("a red circle left of a blue square", "a red circle above a blue square"),
        ("three red circles", "two red circles"),
        ("two red circles and a blue square", "a red circle and two blue squares"),
        ("a small red circle and a large blue square", "a large red circle and a small blue square"),
        ("a red circle and a blue square", "a blue circle and a red square"),
        ("a red circle and a blue square", "a red circle"),
    ]
    generator = random.Random(2)
    for said, other in pairs:
        for _ in range(10):
            image = render(Scene.parse(said), generator)
            assert verify(image, Scene.parse(said)).strict
            assert not verify(image, Scene.parse(other)).strict


def test_what_is_wrong_first_has_a_name() -> None:
    scene = Scene.parse("a red circle left of a blue square")

    def failing(*seen: Seen, of: Scene = scene) -> str | None:
        return failure_of(judge(seen, of), of)

    left, right = Seen(CIRCLE, 10, 30, 6), Seen(SQUARE, 50, 30, 6)
    assert failing(left, right) is None
    assert failing(left) == "count"
    assert failing(left, right, Seen(CROSS, 30, 50, 6)) == "count"
    assert failing(Seen(Thing("red", UNKNOWN), 10, 30, 6), right) == "shape"
    assert failing(Seen(Thing("red", UNKNOWN), 10, 30, 9), right) == "count"  # two in one
    assert failing(Seen(Thing("red", UNKNOWN), 10, 30, 2), left, right) == "count"
    assert failing(Seen(Thing("red", UNKNOWN), 10, 30, 6, touching=True), right) == "binding"
    assert failing(Seen(Thing("red", "cross"), 10, 30, 6), right) == "shape"
    assert failing(Seen(Thing("cyan", "circle"), 10, 30, 6), right) == "colour"
    assert (
        failing(Seen(Thing("blue", "circle"), 10, 30, 6), Seen(Thing("red", "square"), 50, 30, 6))
        == "binding"
    )
    assert failing(Seen(CIRCLE, 50, 30, 6), Seen(SQUARE, 10, 30, 6)) == "placement"
    assert failing(Seen(CIRCLE, 30, 10, 6), Seen(SQUARE, 30, 50, 6)) == "placement"
    sized = Scene.parse("a small red circle and a large blue square")
    assert failing(Seen(CIRCLE, 10, 30, 8), Seen(SQUARE, 50, 30, 8), of=sized) == "binding"
    assert failing(Seen(CIRCLE, 10, 30, 5), Seen(SQUARE, 50, 30, 8), of=sized) is None


def test_only_things_that_grew_together_touch() -> None:
    circle, square = Placed(CIRCLE, 20, 30, 6), Placed(SQUARE, 40, 30, 6)
    ground = np.full((3, 64, 64), 0.8, np.float32)
    assert not any(item.touching for item in see(paint(ground.copy(), [circle, square], random.Random(0))[0]))
    near = replace(square, x=31)
    assert all(item.touching for item in see(paint(ground.copy(), [circle, near], random.Random(0))[0]))


def test_scenes_are_drawn_from_their_seed() -> None:
    one, counts = draw_scenes(40, 5)
    two, again = draw_scenes(40, 5)
    assert np.array_equal(one.images, two.images)
    assert np.array_equal(counts, again)
    assert counts.sum(1).tolist() == [Scene.parse(prompt).total for prompt in one.prompts]
    assert one.layouts.shape == (40, 7, 8, 8)
    other, _ = draw_scenes(4, 6, (64, 48))
    assert other.images.shape == (4, 3, 64, 48)


def test_what_cannot_be_placed_is_said() -> None:
    with pytest.raises(ScenesError, match="expected a scene that fits into 16x16 pixels"):
        place(Scene.parse("four red circles"), random.Random(0), (16, 16))
    placed = place(Scene.parse("a large red circle"), random.Random(0), (64, 64))
    image, covered = draw(placed, random.Random(0), (64, 64))
    assert covered.sum() == pytest.approx(np.pi * placed[0].radius ** 2, rel=0.05)
    assert image.min() >= 0
    assert image.max() <= 1
