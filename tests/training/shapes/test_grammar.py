import pytest

from npnet_training.errors import PromptsError
from npnet_training.shapes.grammar import INVERSE, Facts, ShapesError, Thing, prompts

CIRCLE, SQUARE = Thing("red", "circle"), Thing("blue", "square")


def test_parses_what_it_writes() -> None:
    for prompt in prompts("train", 200) + prompts("held-out", 200):
        assert str(Facts.parse(prompt)) == prompt


def test_parses_objects_and_relations() -> None:
    facts = Facts.parse("A red circle left of a blue square above a green cross")
    assert facts.things == (CIRCLE, SQUARE, Thing("green", "cross"))
    assert facts.relations == ("left of", "above")
    assert facts.links[0] == (CIRCLE, "left of", SQUARE)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("", "0 words"),
        ("a photograph of a dog", "the word 'photograph'"),
        ("a red circle a", "4 words"),
        ("a pink circle", "'a pink circle'"),
        ("the red circle", "'the red circle'"),
        ("a red circle near a blue square", "words|relation"),
        ("a red circle beside a blue square", "relation 'beside'"),
        ("a red circle above a red circle", "the same thing twice"),
        ("a red circle left of a blue square right of a green cross", "'left of' and then 'right of'"),
        ("a red circle below a blue square above a green cross", "'below' and then 'above'"),
        (" above ".join(["a red circle", "a blue circle", "a green circle", "a cyan circle"]), "15 words"),
    ],
)
def test_says_what_it_understands(prompt: str, found: str) -> None:
    with pytest.raises(ShapesError, match=found) as caught:
        Facts.parse(prompt)
    assert "left of, right of, above, below" in str(caught.value)
    assert isinstance(caught.value, PromptsError)


def test_splits_share_no_pair_whichever_way_it_is_said() -> None:
    def pairs(prompt: str) -> set[tuple[Thing, str, Thing]]:
        links = Facts.parse(prompt).links
        return {*links, *((b, INVERSE[relation], a) for a, relation, b in links)}

    trained = set().union(*map(pairs, prompts("train", 3000)))
    for prompt in prompts("held-out", 500):
        assert pairs(prompt) - trained, prompt  # at least one of its pairs is new
    for prompt in prompts("train", 500):
        assert Facts.parse(prompt).split == "train"


def test_prompts_are_distinct_seeded_and_extend() -> None:
    some = prompts("held-out", 100, seed=3)
    assert len(set(some)) == 100
    assert prompts("held-out", 200, seed=3)[:100] == some
    assert prompts("held-out", 100, seed=4) != some
