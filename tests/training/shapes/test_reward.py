"""The differentiable reward of the shapes world against its judge."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from npnet_training.errors import RewardError
from npnet_training.shapes.grammar import COLOURS, INVERSE, SHAPES, Facts, ShapesError, Thing, draw_facts
from npnet_training.shapes.render import render
from npnet_training.shapes.reward import ShapesReward
from npnet_training.shapes.verify import verify

COUNT = 120


def changed(facts: Facts, generator: random.Random) -> Facts:
    """The same but for one colour, one shape or one relation."""
    while True:
        things, relations = list(facts.things), list(facts.relations)
        place = generator.randrange(len(things))
        colour, shape = things[place].colour, things[place].shape
        what = generator.choice(["colour", "shape", "relation"] if relations else ["colour", "shape"])
        if what == "colour":
            things[place] = Thing(generator.choice([c for c in COLOURS if c != colour]), shape)
        elif what == "shape":
            things[place] = Thing(colour, generator.choice([s for s in SHAPES if s != shape]))
        else:
            place = generator.randrange(len(relations))
            relations[place] = INVERSE[relations[place]]
        apart = all(b != INVERSE[a] for a, b in itertools.pairwise(relations))
        if apart and len(set(things)) == len(things):
            return Facts(tuple(things), tuple(relations))


def drawn(facts: list[Facts], generator: random.Random) -> Tensor:
    return torch.from_numpy(np.stack([render(one, generator) for one in facts]))


def test_agrees_with_the_judge() -> None:
    generator = random.Random(1)
    facts = [draw_facts(generator, ("train", "held-out")[number % 2]) for number in range(COUNT)]
    prompts = [str(one) for one in facts]
    true = drawn(facts, generator)
    images = {
        "true": true,
        "one fact changed": drawn([changed(one, generator) for one in facts], generator),
        "of others": true.roll(1, 0),
        "noise": torch.rand(true.shape, generator=torch.Generator().manual_seed(0)),
    }
    reward = ShapesReward()
    values = {name: reward.reward(image, prompts) for name, image in images.items()}
    scores = {
        name: [verify(one.numpy(), fact).score for one, fact in zip(image, facts, strict=True)]
        for name, image in images.items()
    }
    assert all(value.min() >= 0 and value.max() <= 1 for value in values.values())
    # Both are drawn at random sizes and places, so a few come close.
    assert (values["true"] > values["one fact changed"]).float().mean() >= 0.98
    for name in ("of others", "noise"):
        assert (values["true"] > values[name]).float().mean() >= 0.98
    ranks = spearmanr(torch.cat(list(values.values())), np.concatenate(list(scores.values())))
    assert ranks.statistic > 0.8


def test_ascent_makes_what_the_judge_asks_for() -> None:
    """From true images of other prompts, by gradient steps on the pixels alone."""
    generator = random.Random(2)
    facts = [Facts.parse("a red circle left of a blue square"), Facts.parse("a green cross")]
    wrong = [Facts.parse("a red circle left of a yellow square"), Facts.parse("a red cross")]
    pixels = drawn(wrong, generator).requires_grad_()
    reward, prompts = ShapesReward(), [str(one) for one in facts]
    optimizer = torch.optim.Adam([pixels], lr=0.02)
    first = reward.reward(pixels, prompts).detach()
    for _ in range(60):
        optimizer.zero_grad()
        (-reward.reward(pixels.clamp(0, 1), prompts).sum()).backward()
        optimizer.step()
    final = pixels.detach().clamp(0, 1)
    assert (reward.reward(final, prompts) > first + 0.2).all()
    for before, after, one in zip(drawn(wrong, generator), final, facts, strict=True):
        assert verify(after.numpy(), one).score > verify(before.numpy(), one).score


def test_an_image_does_not_depend_on_its_batch() -> None:
    generator = random.Random(3)
    facts = [draw_facts(generator, "train") for _ in range(4)]
    images, prompts = drawn(facts, generator), [str(one) for one in facts]
    reward = ShapesReward()
    together = reward.reward(images, prompts)
    for number in range(4):
        alone = reward.reward(images[number : number + 1], prompts[number : number + 1])
        torch.testing.assert_close(alone, together[number : number + 1])


def test_flat_images_have_finite_gradients() -> None:
    for level in (0.0, 0.5, 1.0):
        images = torch.full((1, 3, 32, 32), level, requires_grad=True)
        ShapesReward().reward(images, ["a red circle"]).sum().backward()
        assert images.grad is not None
        assert images.grad.isfinite().all()


def test_bad_input() -> None:
    with pytest.raises(RewardError, match=r"expected images of shape \(3, 32, 32\), given \(3, 16, 16\)"):
        ShapesReward().reward(torch.zeros(1, 3, 16, 16), ["a red circle"])
    with pytest.raises(ShapesError, match="two cats"):
        ShapesReward().reward(torch.zeros(1, 3, 32, 32), ["two cats"])
