import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from npnet_training.errors import ScorerError, SettingsError
from npnet_training.scorers import SelectionRule, load_scorer, score_all, scorer_names
from npnet_training.scorers.clip import CLIPScore, PickScore
from npnet_training.scorers.registry import GIVE_UP, Lenient
from npnet_training.shapes.grammar import Facts
from npnet_training.shapes.render import render
from support import clip


def picture(prompt: str) -> Image.Image:
    pixels = render(Facts.parse(prompt), random.Random(0))
    return Image.fromarray((pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8))


def test_shapes() -> None:
    prompts = ["a red circle", "a red circle left of a blue square"]
    images = [picture(prompts[0]), picture(prompts[0])]
    scores = score_all({name: load_scorer(name) for name in ("shapes", "shapes-strict")}, prompts, images)
    assert scores["shapes-strict"] == [1, 0]
    assert scores["shapes"][0] == 1
    assert 0 < scores["shapes"][1] < 1


def test_unknown() -> None:
    with pytest.raises(
        ScorerError,
        match="one of aesthetic, clipscore, hpsv2, imagereward, pickscore, scenes, scenes-second",
    ):
        load_scorer("nicescore")
    assert "shapes" in scorer_names()


class Fails:
    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
        if "bad" in prompts:
            raise RuntimeError("cannot see")
        return [1.0] * len(images)


def test_one_image_that_fails_has_no_score() -> None:
    image = picture("a red circle")
    scorers = {"f": Lenient("f", Fails())}
    values = score_all(scorers, ["good", "bad", "good"], [image] * 3)["f"]
    assert values[::2] == [1, 1]
    assert math.isnan(values[1])
    for _ in range(2 * GIVE_UP):  # alone in its batch
        assert math.isnan(score_all(scorers, ["bad"], [image])["f"][0])


def test_a_scorer_that_never_works() -> None:
    image = picture("a red circle")
    scorers = {"f": Lenient("f", Fails())}
    for _ in range(GIVE_UP - 1):
        assert math.isnan(score_all(scorers, ["bad"], [image])["f"][0])
    with pytest.raises(ScorerError, match="f gives no number for any of 6 images: RuntimeError: cannot see"):
        score_all(scorers, ["bad"], [image])


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip.tiny_clip(tmp_path_factory.mktemp("clip"))


def test_clip_scores_are_those_of_the_library(tiny_clip: Path) -> None:
    from transformers import AutoProcessor, CLIPModel

    prompts = ["a red circle", "a blue square left of a red circle"]
    images = [picture(prompt) for prompt in prompts]
    own: dict[str, Any] = {"weights": str(tiny_clip), "processor": str(tiny_clip)}
    model: Any = CLIPModel.from_pretrained(tiny_clip)
    processor: Any = AutoProcessor.from_pretrained(tiny_clip)
    with torch.no_grad():
        out = model(**processor(text=prompts, images=images, return_tensors="pt", padding=True))
    logits = out.logits_per_image.diagonal()
    assert PickScore(**own).score(prompts, images) == pytest.approx(logits.tolist(), rel=1e-4)
    cosines = (logits / model.logit_scale.exp()).clamp(min=0)
    assert CLIPScore(**own).score(prompts, images) == pytest.approx(
        (2.5 * cosines).tolist(), rel=1e-4, abs=1e-6
    )
    # an image's score does not depend on its batch
    alone = PickScore(**own).score(prompts[:1], images[:1])
    assert alone == pytest.approx([float(logits[0])], rel=1e-4)


@pytest.mark.parametrize(
    ("rule", "after", "kept"),
    [
        ("a rises", {"a": 1.1, "b": 0}, True),
        ("a rises", {"a": 1.0, "b": 9}, False),
        ("a holds", {"a": 1.0, "b": 0}, True),
        ("a rises by 0.5", {"a": 1.4, "b": 0}, False),
        ("a rises by 0.5 and b holds", {"a": 1.6, "b": 1}, True),
        ("a reaches 2", {"a": 2.0, "b": 0}, True),
        ("a reaches 2", {"a": 2.5, "b": 0}, True),
        ("a reaches 2", {"a": 1.9, "b": 9}, False),
        ("all rise", {"a": 2, "b": 1}, False),
        ("all rise", {"a": 2, "b": 1.1}, True),
        ("keep all", {"a": 0, "b": 0}, True),
        ("a holds", {"a": math.nan, "b": 0}, False),
    ],
)
def test_rules(rule: str, after: dict[str, float], kept: bool) -> None:
    decided, reason = SelectionRule.parse(rule, ["a", "b"]).decide({"a": 1.0, "b": 1.0}, after)
    assert decided is kept
    assert reason


def test_a_rule_for_all_is_told_of_each_scorer() -> None:
    rule = SelectionRule.parse("all rise by 0.5", ["a", "b"])
    assert rule.decide({"a": 1, "b": 1}, {"a": 2, "b": 2}) == (True, "a rise by 0.5 and b rise by 0.5")
    assert rule.decide({"a": 1, "b": 1}, {"a": 2, "b": 1.2}) == (False, "not: b rise by 0.5 (1 -> 1.2)")
    whole = "a rises and b holds"
    assert SelectionRule.parse(whole, ["a", "b"]).decide({"a": 1, "b": 1}, {"a": 2, "b": 1}) == (True, whole)


@pytest.mark.parametrize("rule", ["a", "a rises by much", "c rises", "", "a rises or b rises"])
def test_bad_rules(rule: str) -> None:
    with pytest.raises(SettingsError, match="--rule"):
        SelectionRule.parse(rule, ["a", "b"])
