"""Whether golden noise can be attached to a pipeline, and used where it runs."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.devices import resolve_device
from npnet_runtime.errors import PipelineError
from npnet_runtime.integrations.diffusers.reading import ENCODE, PREPARE, reading_of
from npnet_runtime.integrations.diffusers.redrawing import DRAW, plain_function, redrawn
from npnet_runtime.networks.registry import NetworkConfig

ELSEWHERE = "call golden(noise, prompt_embeds) and pass the result as latents instead"
ENGINES = (
    "attach an engine for this model: npnet-export --list shows those there are, "
    "npnet-export --for MODEL --random-weights 0 makes one to try"
)
# What `prepare_latents` of a pipeline may take that starts from noise alone.
CHANNELS = ("num_channels_latents", "num_latents_channels", "num_channels")
SIDES = ("height", "width")
_NOISE_ALONE = {
    "self",
    "batch_size",
    *CHANNELS,
    *SIDES,
    "num_frames",
    "dtype",
    "device",
    "generator",
    "latents",
}
_NOISE_ALONE |= {"patch_size", "do_patching"}
_OF_IMAGES = re.compile(
    "Img2Img|Image2Image|Inpaint|Edit|Pix2Pix|Upscale|Variation|Refiner|Fill|Kontext|Redux|Layered|Zero|Cloze"
)
_OF_VIDEOS = {"num_frames", "video_length"}
# Where a denoiser's configuration says how wide the embeddings are that it reads: the first there is.
_TEXT_WIDTHS = ("caption_channels", "cap_feat_dim", "joint_attention_dim", "cross_attention_dim")


@dataclass(frozen=True)
class Verdict:
    """Whether calls of a class of pipelines can start from golden noise, and why not."""

    supported: bool
    reason: str = ""


def judge(pipeline: type) -> Verdict:
    """Whether calls of a class of pipelines can start from golden noise, by how it draws and encodes.

    Args:
        pipeline: a class of diffusers, or a user's own; nothing is made of it or called.
    """
    name = pipeline.__name__
    prepare = getattr(pipeline, PREPARE, None)
    arguments = inspect.signature(pipeline.__call__).parameters
    if "prompt" not in arguments:
        return Verdict(False, "takes no prompt")
    image = arguments.get("image")
    if _OF_IMAGES.search(name) or (image is not None and image.default is inspect.Parameter.empty):
        return Verdict(False, "changes or continues an image")
    if _OF_VIDEOS & {*arguments} or "Video" in name:
        return Verdict(False, "makes a video")
    if prepare is None:
        return Verdict(False, f"has no {PREPARE}")
    parameters = tuple(inspect.signature(prepare).parameters)
    foreign = [parameter for parameter in parameters if parameter not in _NOISE_ALONE]
    if foreign or not {*SIDES} <= {*parameters}:
        what = f"takes {', '.join(foreign)}" if foreign else "knows no height and width"
        return Verdict(False, f"does not start from noise alone: its {PREPARE} {what}")
    function = plain_function(prepare)
    if function is None or DRAW not in function.__code__.co_names:
        return Verdict(False, f"its {PREPARE} does not draw by {DRAW}")
    reading = reading_of(pipeline)
    encodes, prepares = reading.of(ENCODE), reading.of(PREPARE)
    if not encodes or not reading.positive():
        return Verdict(False, f"takes no embeddings from {ENCODE}")
    if not prepares or prepares[0].first_line < encodes[0].first_line:
        return Verdict(False, "draws its noise before it encodes its prompt")
    return Verdict(True)


def denoiser(pipe: Any) -> Any:
    """The network that removes the noise: `pipe.unet` or `pipe.transformer`; None if there is neither."""
    return getattr(pipe, denoiser_name(pipe), None)


def denoiser_name(pipe: Any) -> str:
    """What a pipeline calls the network that removes the noise."""
    return "transformer" if getattr(pipe, "unet", None) is None else "unet"


def check_pipeline(
    pipe: Any, config: NetworkConfig, reads: dict[str, str] | None = None, *, own_text: bool = False
) -> None:
    """Check that `pipe` starts from noise, and reads text, of the shapes of the network.

    Args:
        pipe: to be checked.
        config: shapes of the network.
        reads: see `Manifest.reads`.
        own_text: whether the network reads prompts by a text encoder of its own.

    Raises:
        PipelineError: it does not; all that differs in one message.
    """
    name = type(pipe).__name__
    lacking = [method for method in (ENCODE, PREPARE) if not hasattr(pipe, method)]
    if isinstance(pipe, type) or lacking:
        what = (
            f"the class {pipe.__name__}" if isinstance(pipe, type) else f"{name}, which has no {lacking[0]}"
        )
        raise PipelineError(
            f"pipe: expected a text-to-image pipeline of diffusers, given {what}; {ELSEWHERE}"
        )
    verdict = judge(type(pipe))
    if not verdict.supported:
        raise PipelineError(
            f"pipe: expected a pipeline that starts from noise alone, given {name}, which {verdict.reason}; "
            f"{ELSEWHERE}"
        )
    differing = []
    drawn = drawn_shape(pipe)
    if drawn is not None and drawn[1] != config.latent_channels:
        differing.append(f"noise of {config.latent_channels} channels, given {name} with {drawn[1]}")
    first = reading_of(type(pipe)).positive()[0]
    own = reads is None or reads["embeds"] == first  # else another text, of which the denoiser says nothing
    width = text_width(pipe) if own and not own_text else None
    if width not in (None, config.text_dim):
        differing.append(f"text embeddings of width {config.text_dim}, given {name} with {width}")
    if differing:
        raise PipelineError(
            f"pipe: expected what the network was trained for: {'; and '.join(differing)}; {ENGINES}"
        )


def text_width(pipe: Any) -> int | None:
    """Width of the embeddings that the denoiser reads, where its configuration says it."""
    config = getattr(denoiser(pipe), "config", None)
    found = (getattr(config, name, None) for name in _TEXT_WIDTHS)
    return next((width for width in found if isinstance(width, int)), None)


class _Seen(Exception):
    """Ends a call at its draw."""


def drawn_shape(pipe: Any, height: int = 1024, width: int = 1024) -> tuple[int, ...] | None:
    """Shape (1, C, H, W) of the noise that a pipeline draws for an image of some pixels; None if unknown.

    Its own `prepare_latents` is asked, which ends at the draw, with the channels that its own `__call__`
    passes.
    """
    shapes: list[tuple[int, ...]] = []

    def draw(shape: Any, **_: Any) -> Tensor:
        shapes.append(planar(tuple(shape)))
        raise _Seen

    pipeline = type(pipe)
    prepare = inspect.signature(getattr(pipeline, PREPARE)).parameters
    given: dict[str, Any] = {"batch_size": 1, "height": height, "width": width, "num_frames": 1}
    given |= {"dtype": torch.float32, "device": torch.device("cpu"), "generator": None, "latents": None}
    try:
        for name in prepare:
            if name not in ("self", *given):
                given[name] = _argument(pipe, name, [*prepare][1:])
        redrawn(getattr(pipeline, PREPARE), draw)(pipe, **{n: v for n, v in given.items() if n in prepare})
    except _Seen:
        return shapes[0]
    except Exception:  # another pipeline's code, run out of its order: there is no telling
        return None
    return None


def _argument(pipe: Any, name: str, parameters: list[str]) -> Any:
    """What the `__call__` of a pipeline passes to its `prepare_latents`, if that depends on nothing else."""
    reading = reading_of(type(pipe))
    call = reading.of(PREPARE)[0].call
    nodes = dict(zip(parameters, call.args, strict=False))
    nodes |= {word.arg: word.value for word in call.keywords if word.arg is not None}
    node = nodes[name]
    if isinstance(node, ast.Name):
        node = reading.expressions[node.id]
    names = plain_function(type(pipe).__call__).__globals__  # type: ignore[union-attr]
    return eval(compile(ast.Expression(node), name, "eval"), names, {"self": pipe})  # the pipeline's own code


def planar(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of noise without the axes of length 1 behind its batch: (B, 1, C, H, W) is (B, C, H, W).

    Raises:
        PipelineError: it is no batch of planes.
    """
    kept = [side for side in shape[1:-2] if side != 1] or [1]
    if len(shape) < 4 or len(kept) != 1:
        raise PipelineError(
            f"expected a pipeline that draws noise (batch, channels, height, width), given one that draws "
            f"{shape}; {ELSEWHERE}"
        )
    return (shape[0], kept[0], *shape[-2:])


def check_device(runs_on: torch.device, device: torch.device) -> None:
    """Check that a pipeline makes its latents where the engine is.

    Raises:
        PipelineError: it does not.
    """
    runs_on = resolve_device(runs_on)
    if runs_on != device:
        raise PipelineError(
            f"pipe: expected a pipeline on {device}, where the engine is, given one that runs on {runs_on}; "
            f"move it with pipe.to({str(device)!r}), or attach GoldenNoise(..., device={str(runs_on)!r})"
        )
