from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from npnet_training.errors import RewardError
from npnet_training.rewards import load_reward, reward_names
from npnet_training.rewards.clip import CLIPReward, PickReward, preprocess
from npnet_training.scorers.clip import CLIPScore, PickScore
from npnet_training.shapes.grammar import Facts
from npnet_training.shapes.render import render
from support.clip import tiny_clip

PROMPTS = ["a red circle", "a blue square left of a red circle"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def pictures(height: int, width: int) -> list[Image.Image]:
    """Scenes, resized; what rounding to 8 bits does has then happened."""
    out = []
    for number, prompt in enumerate(PROMPTS):
        pixels = render(Facts.parse(prompt), random.Random(number))
        image = Image.fromarray((pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8))
        out.append(image.resize((width, height), Image.Resampling.BICUBIC))
    return out


def tensors(images: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (80, 53), (41, 100)])
def test_preprocessing_is_the_librarys(clip: Path, size: tuple[int, int]) -> None:
    """But for its rounding to 8 bits after resizing: half a step of 1/255, over a deviation of 0.26, and
    another for the filter's own rounding."""
    from transformers import AutoProcessor

    load: Any = AutoProcessor.from_pretrained
    processor = load(clip).image_processor
    images = pictures(*size)
    expected = processor(images, return_tensors="pt")["pixel_values"]
    found = preprocess(tensors(images), processor)
    torch.testing.assert_close(found, expected, rtol=0, atol=1.1 / 255 / 0.26)


def test_rewards_are_the_scores(clip: Path) -> None:
    own: dict[str, Any] = {"weights": str(clip), "processor": str(clip)}
    images = pictures(32, 32)
    pixels = tensors(images).requires_grad_()
    rewards = {PickReward: PickScore, CLIPReward: CLIPScore}
    for reward, scorer in rewards.items():
        values = reward(**own).reward(pixels, PROMPTS)
        scores = torch.tensor(scorer(**own).score(PROMPTS, images))
        if reward is CLIPReward:  # the score is cut at 0
            assert torch.equal(scores > 0, values > 0)
            values = values.clamp(min=0)
        torch.testing.assert_close(values, scores, rtol=1e-3, atol=1e-4)
    PickReward(**own).reward(pixels, PROMPTS).sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad.flatten(1).abs().amax(1) > 0).all()


def test_a_step_along_the_gradient_is_worth_it(clip: Path) -> None:
    reward: Any = PickReward(weights=str(clip), processor=str(clip))
    pixels = tensors(pictures(40, 40)).requires_grad_()
    before = reward.reward(pixels, PROMPTS)
    (gradient,) = torch.autograd.grad(before.sum(), [pixels])
    with torch.no_grad():
        assert (reward.reward(pixels + 0.01 * gradient.sign(), PROMPTS) > before).all()


def test_by_name() -> None:
    assert reward_names() == ["clipscore", "pickscore", "scenes", "shapes"]
    images = tensors(pictures(32, 32))
    values = load_reward("shapes").reward(images, PROMPTS)
    assert (values > 0.6).all()
    with pytest.raises(
        RewardError, match=r"unknown reward 'beauty': expected one of clipscore, pickscore, sc"
    ):
        load_reward("beauty")


def test_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another package, as it is installed."""
    package = tmp_path / "beautiful-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: beautiful\nVersion: 1.0\n")
    points = ("redness = support.rewards:Redness", "broken = support.rewards:Missing", "no = pathlib:Path")
    (package / "entry_points.txt").write_text("\n".join(["[npnet.rewards]", *points, ""]))
    monkeypatch.syspath_prepend(tmp_path)
    assert "redness" in reward_names()
    values = load_reward("redness").reward(torch.ones(2, 3, 4, 4), PROMPTS)
    assert torch.equal(values, torch.zeros(2))
    for name in ("broken", "no"):
        with pytest.raises(RewardError, match=f"the reward {name}"):
            load_reward(name)
