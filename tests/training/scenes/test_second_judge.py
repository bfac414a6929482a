"""The judge that no reward sees: it learns to find things, and holds scenes to all that they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from npnet_training.errors import PromptsError, ScorerError
from npnet_training.prompts import read_prompts
from npnet_training.scenes import second_judge
from npnet_training.scenes.grammar import Scene
from npnet_training.scenes.render import render
from npnet_training.scenes.second_judge import CELL, MALFORMED, Eyes, Found, SecondJudge, holds
from npnet_training.scenes.train_second_judge import (
    SecondJudgeSettings,
    examples,
    loss_of,
    main,
    train_eyes,
)
from npnet_training.scorers import load_scorer
from npnet_training.shapes.grammar import COLOURS, SHAPES


def test_it_shares_no_code_with_the_other() -> None:
    source = Path(second_judge.__file__).read_text()
    assert "import verify" not in source
    assert "scenes.verify" not in source
    assert "shapes.verify" not in source
    assert "scenes.placing" not in source


def test_all_that_a_scene_says_is_asked() -> None:
    scene = Scene.parse("two red circles left of a blue square and a green cross")
    circles = [Found("red", "circle", 10, 20, 5), Found("red", "circle", 12, 40, 5)]
    square, cross = Found("blue", "square", 50, 30, 5), Found("green", "cross", 30, 55, 5)
    assert holds([*circles, square, cross], scene)
    assert not holds([*circles, square], scene)
    assert not holds([*circles, square, cross, cross], scene)
    assert not holds([*circles, Found("blue", None, 50, 30, 5), cross], scene)
    assert not holds([circles[0], Found("red", "circle", 55, 31, 5), square, cross], scene)
    sized = Scene.parse("a small red circle and a large blue square")
    assert holds([Found("red", "circle", 10, 20, 4.8), Found("blue", "square", 50, 30, 7.8)], sized)
    assert not holds([Found("red", "circle", 10, 20, 7.8), Found("blue", "square", 50, 30, 4.8)], sized)
    for link, x, y in (("left of", 40, 0), ("right of", -40, 0), ("above", 0, 40), ("below", 0, -40)):
        said = Scene.parse(f"a red circle {link} a blue square")
        found = [Found("red", "circle", 30, 30, 5), Found("blue", "square", 30 + x, 30 + y, 5)]
        assert holds(found, said)
        assert not holds([found[0], Found("blue", "square", 30 - x, 30 - y, 5)], said)
        assert not holds([found[0], Found("blue", "square", 30 + y, 30 + x, 5)], said)


def test_reads_the_cells() -> None:
    class Fixed(Eyes):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out = torch.full((len(images), 1 + 3 + len(COLOURS) + len(SHAPES) + 1, 8, 6), -9.0)
            out[0, 0, 2, 3] = 1.0
            out[0, 1:3, 2, 3] = 0.0
            out[0, 3, 2, 3] = 0.5413  # softplus gives 1
            out[0, 4 + COLOURS.index("cyan"), 2, 3] = 5
            out[0, 4 + len(COLOURS) + MALFORMED, 2, 3] = 5
            return out

    (only,), nothing = SecondJudge(Fixed()).see(torch.zeros(2, 3, 64, 48))
    assert (only.colour, only.shape) == ("cyan", None)
    assert (only.x, only.y, only.radius) == pytest.approx((28.0, 20.0, 8.0), abs=1e-3)
    assert nothing == []


def test_examples_say_what_is_in_them() -> None:
    images, targets = examples(30, 1, (64, 48))
    assert images.shape == (30, 3, 64, 48)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    things = [target for found in targets for target in found]
    assert {target[-1] for target in things} == set(range(MALFORMED + 1))
    for row, column, x, y, radius, _, _ in things:
        assert 0 <= row < 8
        assert 0 <= column < 6
        assert 0 <= x < CELL
        assert 0 <= y < CELL
        assert 4 < radius < 9
    one = [len({(t[0], t[1]) for t in found}) == len(found) for found in targets]
    assert all(one)  # no two things in a cell


def test_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = SecondJudgeSettings(output=tmp_path / "a", scenes=96, steps=24)
    images, targets = examples(32, settings.seed, (64, 64))
    torch.manual_seed(settings.seed)
    untrained, eyes = Eyes(), train_eyes(settings)
    with torch.no_grad():
        before, after = (float(loss_of(one(images), targets)) for one in (untrained, eyes))
    assert after < 0.8 * before
    file = tmp_path / "judge.safetensors"
    assert main(["--output", str(file), "--scenes", "3", "--steps", "1"]) == 0
    judge = SecondJudge.load(file)
    scene = Scene.parse("a red circle")
    assert judge.strict(torch.zeros(1, 3, 64, 64), [scene]) in ([True], [False])
    assert main(["--output", str(file), "--scenes", "3", "--steps", "1"]) == 2
    assert "exists" in capsys.readouterr().err
    with pytest.raises(ScorerError, match="train_second_judge --output FILE"):
        SecondJudge.load(tmp_path / "nothing")


def test_scorers_and_prompts_of_the_world() -> None:
    import random

    prompts = [*read_prompts("scenes:held-out:6:2")]
    assert all(prompt.fields["tag"] == Scene.parse(prompt.text).kind for prompt in prompts)
    with pytest.raises(PromptsError, match=r"expected scenes:train\|held-out:COUNT"):
        [*read_prompts("scenes:all")]
    images = [
        Image.fromarray(
            (render(Scene.parse(prompt.text), random.Random(n), (48, 64)).transpose(1, 2, 0) * 255).astype(
                np.uint8
            )
        )
        for n, prompt in enumerate(prompts)
    ]
    texts = [prompt.text for prompt in prompts]
    assert list(load_scorer("scenes-strict").score(texts, images)) == [1.0] * 6
    assert max(load_scorer("scenes").score([*texts[1:], texts[0]], images)) < 1
    with pytest.raises(ScorerError, match="expected images of 64x64, 64x48, 48x64 pixels, given 32x32"):
        from npnet_training.scorers.scenes import judge

        judge("a red circle", Image.new("RGB", (32, 32)))
