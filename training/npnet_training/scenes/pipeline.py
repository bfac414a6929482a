"""The second model as a pipeline: diffusers' own FluxPipeline, with defaults of this world's size."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

import torch
from diffusers import FluxPipeline

from npnet_training.scenes.networks import TOKENS

SIDE, STEPS = 64, 10
"""Pixels of an image's sides, and steps, where a call says nothing."""


def _with_defaults(call: Any, **defaults: Any) -> Any:
    """The same function with other defaults: 512 tokens of padding would take most of the time here."""
    plain: FunctionType = call.__wrapped__
    names = plain.__code__.co_varnames[: plain.__code__.co_argcount]
    own = dict(zip(names[-len(plain.__defaults__ or ()) :], plain.__defaults__ or (), strict=True))
    values = tuple({**own, **defaults}.values())
    copy = FunctionType(plain.__code__, plain.__globals__, plain.__name__, values, plain.__closure__)
    copy.__kwdefaults__ = plain.__kwdefaults__
    functools.update_wrapper(copy, plain)
    del vars(copy)["__wrapped__"]  # who unwraps it is to find these defaults
    return torch.no_grad()(copy)


class ScenesPipeline(FluxPipeline):
    """`FluxPipeline`, whose calls make images of 64x64 pixels in 10 steps of prompts of 16 tokens."""

    __call__ = _with_defaults(
        FluxPipeline.__call__, height=SIDE, width=SIDE, num_inference_steps=STEPS, max_sequence_length=TOKENS
    )
