"""The differentiable stand-in for the second world's judge."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from npnet_training.errors import RewardError
from npnet_training.rewards import load_reward
from npnet_training.scenes.grammar import Group, Scene, prompts
from npnet_training.scenes.placing import SIZES, place
from npnet_training.scenes.render import draw, render
from npnet_training.scenes.reward import ScenesReward
from npnet_training.shapes.grammar import Thing

REWARD = ScenesReward()


def test_true_renders_have_more_than_wrong_ones() -> None:
    generator = random.Random(0)
    texts = prompts("held-out", 60)
    for size in SIZES:
        images = torch.from_numpy(np.stack([render(Scene.parse(text), generator, size) for text in texts]))
        right = REWARD.reward(images, texts)
        wrong = REWARD.reward(images, [texts[-1], *texts[:-1]])
        assert right.min() > 0.75
        assert right.mean() > 0.87
        assert wrong.mean() < 0.6
        assert (right > wrong).all()


def test_each_fact_counts() -> None:
    """A render of what was said against that of the same with one thing changed."""
    generator = random.Random(1)
    for said, other in (
        ("a red circle left of a blue square", "a red circle right of a blue square"),
        ("a red circle above a blue square", "a red circle below a blue square"),
        ("three red circles", "two red circles"),
        ("two red circles", "three red circles"),
        ("a small red circle and a large blue square", "a large red circle and a small blue square"),
        ("a red circle and a blue square", "a blue circle and a red square"),
        ("a red circle and a blue square", "a red circle and a blue triangle"),
    ):
        means = []
        for text in (said, other):  # means, as places and sizes are drawn
            drawn = [render(Scene.parse(text), generator) for _ in range(8)]
            means.append(float(REWARD.reward(torch.from_numpy(np.stack(drawn)), [said] * 8).mean()))
        assert means[0] > means[1] + 0.03, (said, other, means)


def test_finds_as_many_as_there_are() -> None:
    generator = random.Random(2)
    group = Group(Thing("red", "circle"), 3)
    for _ in range(5):
        placed = place(Scene((group,)), generator, (48, 64))
        image = torch.from_numpy(draw(placed, generator, (48, 64))[0])[None]
        seen = REWARD.seek(REWARD._colours.colour_masks(image), [group])[0]
        found = sorted(zip(seen.x.tolist(), seen.y.tolist(), seen.radius.tolist(), strict=True))
        wanted = sorted((item.x, item.y, item.radius) for item in placed)
        np.testing.assert_allclose(found, wanted, atol=1.0)
        assert seen.found.min() > 0.6
        assert seen.surplus < 0.3


def test_a_gradient_leads_to_what_is_said() -> None:
    generator = torch.Generator().manual_seed(0)
    image = (0.5 + 0.05 * torch.randn(1, 3, 64, 64, generator=generator)).requires_grad_()
    before = REWARD.reward(image, ["a red circle left of a blue square"])
    optimizer = torch.optim.Adam([image], 0.05)
    for _ in range(60):
        loss = -REWARD.reward(image.clamp(0, 1), ["a red circle left of a blue square"]).sum()
        optimizer.zero_grad()
        loss.backward()
        assert image.grad is not None
        assert image.grad.isfinite().all()
        optimizer.step()
    after = REWARD.reward(image.clamp(0, 1), ["a red circle left of a blue square"])
    assert after > before + 0.15


def test_by_name_and_of_its_sizes_only() -> None:
    reward = load_reward("scenes", device=torch.device("cpu"), offline=True)
    assert reward.reward(torch.zeros(2, 3, 64, 48), ["a red circle", "two blue squares"]).shape == (2,)
    with pytest.raises(RewardError, match="expected images of 64x64, 64x48, 48x64 pixels, given 32x32"):
        reward.reward(torch.zeros(1, 3, 32, 32), ["a red circle"])
