"""The numbers, on images whose truth is known: renders of the prompt, and of another one."""

import random

import numpy as np
import pytest
from PIL import Image

from npnet_training.demo.drawing import Drawn, Times
from npnet_training.demo.summary import STRICT, image_rows, summarise
from npnet_training.demo.tables import tables
from npnet_training.demo.worlds import WORLDS
from npnet_training.shapes.grammar import Facts, prompts
from npnet_training.shapes.render import render
from npnet_training.shapes.verify import KINDS, kind_of, verify

HELD_OUT = prompts("held-out", 40)


def drawn(prompt: str, shown: str, seed: int) -> Drawn:
    pixels = render(Facts.parse(shown), random.Random(seed))
    image = Image.fromarray(np.round(255 * pixels.transpose(1, 2, 0)).astype(np.uint8))
    return Drawn(prompt, seed, image, verify(pixels, Facts.parse(prompt)))


def arm(wrong: set[int]) -> list[Drawn]:
    """Right images of all prompts but these, which show one thing of the prompt only."""
    out = []
    for number, prompt in enumerate(HELD_OUT):
        first = str(Facts.parse(prompt).things[0])
        out.append(drawn(prompt, first if number in wrong else prompt, number))
    return out


def test_rates_and_differences() -> None:
    plain, golden = set(range(16)), {0, 1, 2, 3, 30, 31}
    found = summarise({"plain": arm(plain), "golden": arm(golden)}, resamples=2000, world=WORLDS["shapes"])
    strict = found["golden"][STRICT]
    assert found["plain"][STRICT] == {"rate": 24 / 40}
    assert strict["rate"] == pytest.approx(34 / 40)
    assert (strict["wins"], strict["ties"], strict["losses"]) == (12, 26, 2)
    change = np.array([(n in plain) - (n in golden) for n in range(40)], float)
    assert strict["difference"] == pytest.approx(change.mean())
    error = change.std() / np.sqrt(40)
    assert strict["low"] == pytest.approx(change.mean() - 1.96 * error, abs=0.3 * error)
    assert strict["high"] == pytest.approx(change.mean() + 1.96 * error, abs=0.3 * error)
    # an image of the first thing only: no relation, one of the two statements about the number
    assert found["plain"]["relation"]["rate"] == pytest.approx(24 / 40)
    assert found["plain"]["count"]["rate"] == pytest.approx((24 + 16 * 0.5) / 40)


def test_single_things_have_no_relation() -> None:
    one = [drawn("a red circle", "a red circle", 0)]
    found = summarise({"plain": one, "golden": one}, resamples=100, world=WORLDS["shapes"])
    assert set(found["plain"]) == {STRICT, "count", "colour", "shape"}
    results = {"denoisers": {"main": {"arms": found, "time": {}}}}
    assert [row[1] for row in tables(results)[1].rows] == ["count", "colour", "shape"]


def test_seeds_of_a_prompt_are_one_group() -> None:
    """Four prompts of fifty equal seeds each say as much as four images."""
    names = HELD_OUT[:4]
    plain = [drawn(name, name, 0) for name in names for _ in range(50)]
    other = [drawn(name, HELD_OUT[9] if name == names[0] else name, 0) for name in names for _ in range(50)]
    found = summarise({"plain": plain, "golden": other}, resamples=1000, world=WORLDS["shapes"])["golden"][
        STRICT
    ]
    assert found["difference"] == pytest.approx(-0.25)
    assert found["low"] <= -0.5
    assert found["high"] == 0


@pytest.mark.parametrize("prompt", ["a red circle", "a red circle left of a red square above a blue cross"])
def test_kinds_of_facts(prompt: str) -> None:
    facts = Facts.parse(prompt)
    statements = drawn(prompt, prompt, 0).verdict.facts
    counts = {kind: sum(kind_of(statement) == kind for statement in statements) for kind in KINDS}
    colours = len({thing.colour for thing in facts.things})
    assert counts == {
        "count": 2, "colour": colours, "shape": len(facts.things), "relation": len(facts.relations),
    }  # fmt: skip


def test_rows_hold_the_facts() -> None:
    (row,) = image_rows("weak", {"golden": [drawn("a red circle", "a blue circle", 3)]})
    assert (row["denoiser"], row["noise"]) == ("weak", "golden")
    assert row["seed"] == 3
    assert not row["strict"]
    assert row["facts"]["1 things"]
    assert not row["facts"]["red is there"]


def test_times_are_medians_and_their_ratio() -> None:
    found = Times([0.001, 0.002, 0.9], [0.02, 0.04, 0.05]).summary()
    assert found["golden_ms"] == pytest.approx(2)
    assert found["denoising_ms"] == pytest.approx(40)
    assert found["share_of_denoising"] == pytest.approx(0.05)
