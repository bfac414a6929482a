"""The conditions of the study: a model, how it samples, and which arms are compared there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from npnet_training.embedded import WorldName
from npnet_training.sampling import SampleSettings

ArmSet = Literal["all", "ablations", "networks", "short"]


@dataclass(frozen=True)
class Condition:
    """Images of one model, sampled one way.

    Args:
        name: of the rows, and for `--conditions`.
        model: as `npnet-evaluate` takes it; `few-step` is the folder given by `--few-step`.
        sample: steps, guidance and scheduler.
        arms: `networks`: every one beside plain, re-denoised and best of 2; `all`: more of best of N, and
            the best network with prompts of others; `ablations`: parts of the paper's network too; or
            `short`: only the network trained the paper's way and the best of the others.
        seeds: noises for each prompt; more than one shows the diversity between them, on fewer prompts.
        size: of the images, HEIGHTxWIDTH in pixels; the model's own by default.
    """

    name: str
    model: str
    sample: SampleSettings
    arms: ArmSet = "networks"
    seeds: int = 1
    size: str | None = None


def _at(steps: int, guidance: float, scheduler: Literal["dpm++", "euler"] | None = None) -> SampleSettings:
    return SampleSettings(steps=steps, guidance=guidance, scheduler=scheduler)


def _named(*conditions: Condition) -> dict[str, Condition]:
    return {condition.name: condition for condition in conditions}


CONDITIONS: dict[WorldName, dict[str, Condition]] = {
    "shapes": _named(
        # The networks are trained on pairs of the main model, for 10 steps of DDIM without guidance.
        Condition("base", "shapes", _at(10, 1.0), "ablations"),
        Condition("diversity", "shapes", _at(10, 1.0), seeds=4),
        Condition("guidance 1.5", "shapes", _at(10, 1.5), "short"),
        Condition("guidance 3", "shapes", _at(10, 3.0), "short"),
        Condition("5 steps", "shapes", _at(5, 1.0)),
        Condition("25 steps", "shapes", _at(25, 1.0), "short"),
        Condition("DPM-Solver++ 5 steps", "shapes", _at(5, 1.0, "dpm++")),
        Condition("Euler", "shapes", _at(10, 1.0, "euler"), "short"),
        Condition("weaker model", "shapes-weak", _at(10, 1.0)),
        Condition("diversity of the weaker model", "shapes-weak", _at(10, 1.0), seeds=4),
        Condition("weaker model at guidance 3", "shapes-weak", _at(10, 3.0), "short"),
        Condition("few-step model", "few-step", _at(2, 1.0)),
    ),
    "scenes": _named(
        # The networks are trained on pairs of 64x64 and 48x64.
        Condition("base", "scenes", _at(10, 3.0), "all"),
        Condition("few-step model", "scenes-few-step", _at(4, 1.0)),
        Condition("diversity", "scenes", _at(10, 3.0), "short", seeds=4),
        Condition("no guidance", "scenes", _at(10, 1.0), "short"),
        Condition("guidance 5", "scenes", _at(10, 5.0), "short"),
        Condition("5 steps", "scenes", _at(5, 3.0), "short"),
        Condition("25 steps", "scenes", _at(25, 3.0), "short"),
        Condition("DPM-Solver++ 10 steps", "scenes", _at(10, 3.0, "dpm++"), "short"),
        Condition("64x48", "scenes", _at(10, 3.0), "short", size="64x48"),
        Condition("48x64", "scenes", _at(10, 3.0), "short", size="48x64"),
    ),
}
