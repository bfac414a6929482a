"""How a pipeline is guided: by which argument, and what stands for no guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from npnet_runtime.integrations.diffusers.checks import denoiser

Kind = Literal["mixed", "embedded", "none"]


@dataclass(frozen=True)
class Guidance:
    """How a pipeline is guided.

    Args:
        kind: `mixed` predictions for the prompt and for a negative one (classifier-free guidance, however the
            pipeline mixes and rescales them); `embedded`, an input of the denoiser; or `none` at all.
        argument: of the pipeline's call that sets it.
        unguided: value of that argument for a prediction of the prompt alone: 1, or 0 where the pipeline
            counts from there.
        default: what the pipeline's call takes for it if it is given none; None if it says nothing.
    """

    kind: Kind
    argument: str | None
    unguided: float = 1.0
    default: float | None = None

    @property
    def by_default(self) -> bool:
        """Whether a call that says nothing of guidance has any."""
        return self.kind == "embedded" or self.mixes(self.default or 1.0)

    def mixes(self, scale: float) -> bool:
        """Whether a scale needs the negative prompt."""
        return self.kind == "mixed" and scale > 1

    def arguments(self, scale: float) -> dict[str, float]:
        """Of the pipeline's call, for a scale; one up to 1 means none where predictions are mixed."""
        if self.argument is None:
            return {}
        return {self.argument: scale if self.kind == "embedded" or scale > 1 else self.unguided}


def guidance_of(pipe: Any, parameters: Mapping[str, Any]) -> Guidance:
    """How a pipeline is guided.

    Args:
        pipe: a copy of it, that may be changed.
        parameters: of its call.
    """
    config = getattr(denoiser(pipe), "config", None)
    kind: Kind = "mixed"
    argument, unguided = "true_cfg_scale" if "true_cfg_scale" in parameters else "guidance_scale", 1.0
    if getattr(config, "guidance_embeds", False) or getattr(config, "time_cond_proj_dim", None) is not None:
        kind, argument = "embedded", "guidance_scale"
    elif argument not in parameters:
        return Guidance("none", None)
    elif argument == "guidance_scale":
        if not _mixes(pipe, 5.0, standard=True):
            return Guidance("none", None)  # distilled, as its configuration says
        unguided = 0.0 if _mixes(pipe, 1.0, standard=False) else 1.0
    default = parameters[argument].default
    return Guidance(kind, argument, unguided, float(default) if isinstance(default, int | float) else None)


def _mixes(pipe: Any, scale: float, *, standard: bool) -> bool:
    """What the pipeline itself says; `standard` if it says nothing."""
    pipe.__dict__["_guidance_scale"] = scale
    return bool(getattr(pipe, "do_classifier_free_guidance", standard))
