import random
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import ndimage

from npnet_training.embedded import SHAPES as MODEL
from npnet_training.shapes.grammar import (
    ALL_THINGS,
    COLOURS,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    Facts,
    ShapesError,
    Thing,
    draw_facts,
)
from npnet_training.shapes.render import PALETTE, SIZE, Image, coverage, render
from npnet_training.shapes.verify import UNKNOWN, see, verify

FAST, FULL = 300, 4000


def scenes(count: int) -> Iterator[tuple[Facts, Image]]:
    generator = random.Random(1)
    for number in range(count):
        facts = draw_facts(generator, "train" if number % 2 else "held-out")
        yield facts, render(facts, generator)


def one_fact_changed(facts: Facts, generator: random.Random) -> Facts:
    while True:
        things, relations = list(facts.things), list(facts.relations)
        place = generator.randrange(len(things))
        more = [*(["relation", "drop"] if relations else []), *(["add"] if len(things) < MAX_OBJECTS else [])]
        kind = generator.choice(["colour", "shape", *more])
        if kind == "colour":
            things[place] = Thing(generator.choice(COLOURS), things[place].shape)
        elif kind == "shape":
            things[place] = Thing(things[place].colour, generator.choice(SHAPES))
        elif kind == "add":
            things.append(generator.choice(ALL_THINGS))
            relations.append(generator.choice(RELATIONS))
        elif kind == "drop":
            end = generator.choice([0, -1])
            del things[end], relations[end]
        else:
            relations[generator.randrange(len(relations))] = generator.choice(RELATIONS)
        changed = Facts(tuple(things), tuple(relations))
        if changed != facts and len(set(things)) == len(things):
            return changed


@pytest.mark.parametrize("count", [FAST, pytest.param(FULL, marks=pytest.mark.slow)])
def test_true_renders_pass_and_wrong_prompts_do_not(count: int) -> None:
    generator = random.Random(2)
    true, blurred, wrong, hard, counts = [], [], [], [], set()
    for facts, image in scenes(count):
        true.append(verify(image, facts).strict)
        blurred.append(verify(ndimage.gaussian_filter(image, (0, 0.5, 0.5)), facts).strict)
        wrong.append(verify(image, draw_facts(generator, "held-out")).strict)
        changed = one_fact_changed(facts, generator)
        hard.append(verify(image, changed).strict)
        counts.add(len(changed.things) - len(facts.things))
    assert np.mean(true) >= 0.999
    assert np.mean(blurred) >= 0.99
    assert np.mean(wrong) <= 0.01
    assert np.mean(hard) <= 0.005
    assert counts == {-1, 0, 1}


def test_the_bundled_autoencoder_keeps_most_renders_true() -> None:
    """97.7 % of these 300, fewer than the blur above: about the most that a denoiser before it can reach."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKL.from_pretrained(MODEL.folder / "vae", local_files_only=True)
    facts, images = zip(*scenes(FAST), strict=True)
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(np.stack(images)) * 2 - 1).latent_dist.mean
        decoded = vae.decode(latents).sample.clip(-1, 1).numpy() / 2 + 0.5
    assert np.mean([verify(*pair).strict for pair in zip(decoded, facts, strict=True)]) >= 0.95


def test_facts_that_cannot_be_drawn() -> None:
    things = Facts.parse("a red circle left of a blue square left of a green cross").things
    with pytest.raises(ShapesError, match="no places found for 'a red circle left of a blue square right of"):
        render(Facts(things, ("left of", "right of")), random.Random(0))


def test_names_the_fact_that_fails() -> None:
    facts = Facts.parse("a red circle left of a blue square")
    image = render(facts, random.Random(0))
    swapped = verify(image, Facts.parse("a red circle right of a blue square"))
    assert [fact for fact, holds in swapped.facts.items() if not holds] == [
        "a red circle right of a blue square"
    ]
    assert swapped.score == pytest.approx(6 / 7)
    assert not swapped.strict
    missing = verify(image, Facts.parse("a red circle left of a blue square above a cyan cross"))
    assert not missing.facts["3 things"]
    assert not missing.facts["a cyan cross is there"]
    extra = verify(image, Facts.parse("a red circle"))
    assert [fact for fact, holds in extra.facts.items() if not holds] == ["nothing extra"]


def test_sees_nothing_in_grey() -> None:
    assert see(np.full((3, SIZE, SIZE), 0.5)) == ()


def test_noise_is_not_a_shape() -> None:
    noise = np.random.default_rng(0).random((100, 3, SIZE, SIZE))
    passed = [verify(image, Facts((thing,))).strict for image in noise for thing in ALL_THINGS]
    assert np.mean(passed) <= 0.001


def test_a_coloured_region_of_no_known_shape() -> None:
    image = np.full((3, SIZE, SIZE), 0.5)
    image[:, 4:28, 15:17] = np.array(PALETTE["red"])[:, None, None]
    (seen,) = see(image)
    assert seen.thing == Thing("red", UNKNOWN)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_about_the_area_of_their_circle(shape: str) -> None:
    assert coverage(shape, 16, 16, 6).sum() == pytest.approx(np.pi * 36, rel=0.2)


def test_unknown_shape() -> None:
    with pytest.raises(ValueError, match="circle, square, triangle, cross"):
        coverage("star", 16, 16, 6)


@pytest.mark.parametrize("colour", PALETTE)
def test_every_colour_is_told_from_the_others(colour: str) -> None:
    for shape in SHAPES:
        (seen,) = see(render(Facts((Thing(colour, shape),)), random.Random(5)))
        assert seen.thing == Thing(colour, shape)


def test_renders_are_repeatable_and_in_range() -> None:
    facts = Facts.parse("a red circle left of a blue square left of a green cross")
    image = render(facts, random.Random(7))
    assert image.shape == (3, SIZE, SIZE)
    assert image.dtype == np.float32
    assert 0 <= image.min() <= image.max() <= 1
    assert (image == render(facts, random.Random(7))).all()
