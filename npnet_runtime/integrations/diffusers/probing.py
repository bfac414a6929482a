"""What a pipeline draws and encodes, found by a call of it that ends where it draws its noise."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.errors import NPNetError, PipelineError
from npnet_runtime.inputs.texts import Prompt
from npnet_runtime.integrations.diffusers.attachment import attached_for
from npnet_runtime.integrations.diffusers.call import Call
from npnet_runtime.integrations.diffusers.checks import ELSEWHERE, judge, planar
from npnet_runtime.integrations.diffusers.reading import prompt_from, reading_of, roles_of
from npnet_runtime.integrations.diffusers.redrawing import redrawn

PROMPT = "a photo of a red cube and a blue ball on a wooden table"


@dataclass(frozen=True)
class Probed:
    """What a pipeline draws and encodes.

    Args:
        noise: (C, H, W) of the noise of one image.
        prompt: what it encodes of one prompt.
        reads: by field of `Prompt`, the name that the pipeline has for it; also of what was None this time.
    """

    noise: tuple[int, int, int]
    prompt: Prompt
    reads: dict[str, str]


class _Drawn(Exception):
    """Ends a call where its noise is drawn."""

    def __init__(self, shape: tuple[int, ...], values: dict[str, Any]) -> None:
        super().__init__("the noise is drawn")
        self.shape, self.values = shape, values


class _Probe(Call):
    """A call that ends at its draw."""

    def begin(self, worker: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Nothing is begun."""

    def prepare(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """End the call."""

        def draw(shape: Any, **_: Any) -> Tensor:
            raise _Drawn(tuple(shape), self.encoded)

        return redrawn(method, draw)(self.pipe, *args, **kwargs)


def probe(pipe: Any, **options: Any) -> Probed:
    """Call a pipeline, and end the call where it draws its noise: text encoders run, the denoiser does not.

    Its denoiser and its autoencoder may lie on the device `meta`, without weights.

    Args:
        pipe: a text-to-image pipeline of diffusers.
        options: of its call beside the prompt, such as `height` and `width`; its own defaults for the rest.

    Raises:
        PipelineError: golden noise cannot be attached to such a pipeline, or it encodes nothing that a
            network reads.
    """
    verdict = judge(type(pipe))
    if not verdict.supported:
        raise PipelineError(
            f"{type(pipe).__name__}: expected a pipeline that starts from noise alone, given one that "
            f"{verdict.reason}; {ELSEWHERE}"
        )
    fixed: dict[str, Any] = {"prompt": PROMPT}
    if "use_resolution_binning" in inspect.signature(pipe.__call__).parameters:
        fixed["use_resolution_binning"] = False  # the size that was asked for, not one of a list
    try:
        with attached_for(pipe, _Probe), torch.no_grad():
            pipe(**fixed | options)
    except NPNetError:
        raise
    except _Drawn as drawn:
        _, channels, height, width = planar(drawn.shape)
        reads = roles_of(reading_of(type(pipe)).positive(), drawn.values)
        prompt = prompt_from(drawn.values, reads, type(pipe).__name__)
        return Probed((channels, height, width), prompt, reads)
    except Exception as error:  # whatever a pipeline raises
        raise PipelineError(
            f"{type(pipe).__name__}: expected to call it with {fixed | options}, up to where it draws its "
            f"noise; it raised {type(error).__name__}: {error}"
        ) from error
    raise PipelineError(f"{type(pipe).__name__}: its call drew no noise")
