"""What the demo needs to know of a world: its prompts, its judge, its model and the networks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from npnet_runtime.weights.packaged import PACKAGED, PackagedModel
from npnet_training.embedded import SCENES, SHAPES, EmbeddedModel, WorldName
from npnet_training.scenes import grammar as scenes
from npnet_training.scenes.verify import FACTS, fact_of
from npnet_training.scorers.scenes import judge as judge_scenes
from npnet_training.scorers.shapes import judge as judge_shapes
from npnet_training.shapes import grammar as shapes
from npnet_training.shapes.verify import KINDS, Verdict, kind_of

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class World:
    """A world of prompts that a program can check.

    Args:
        model: its embedded text-to-image model.
        networks: those that are bundled for it, by what `--network` takes.
        parse: a prompt's meaning, whose text is the prompt again; raises PromptsError.
        held_out: so many prompts that were never trained on.
        judge: says what of a prompt holds in an image.
        kind_of: what a statement of the judge is about.
        kinds: all that it may be about, in the order of the tables.
    """

    model: EmbeddedModel
    networks: Mapping[str, PackagedModel]
    parse: Callable[[str], Any]
    held_out: Callable[[int], list[str]]
    judge: Callable[[str, Image.Image], Verdict]
    kind_of: Callable[[str], str]
    kinds: tuple[str, ...]


WORLDS: dict[WorldName, World] = {
    "shapes": World(
        SHAPES,
        {"prompt-attention": PACKAGED["shapes"], "npnet": PACKAGED["shapes-npnet"]},
        shapes.Facts.parse,
        lambda count: shapes.prompts("held-out", count),
        judge_shapes,
        kind_of,
        KINDS,
    ),
    "scenes": World(
        SCENES,
        {"prompt-attention": PACKAGED["scenes"], "npnet": PACKAGED["scenes-npnet"]},
        scenes.Scene.parse,
        lambda count: scenes.prompts("held-out", count),
        judge_scenes,
        fact_of,
        FACTS,
    ),
}
