"""Schedulers in place of a pipeline's own, for one call: they show what the call hands over, or end it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


class Ended(Exception):
    """Ends a call of a pipeline that has shown what it was made for."""


def ending_at_timesteps(scheduler: Any) -> Any:
    """A copy that ends the call when its `timesteps` are set; None before."""
    copy = _copy(scheduler, _ending_class)
    copy.timesteps = None
    return copy


def at_timestep(scheduler: Any, timestep: Tensor) -> Any:
    """A copy of one timestep, which scales nothing and ends the call at its step.

    Args:
        scheduler: of a pipeline.
        timestep: ().

    Returns:
        It, whose `output` is the model's output of that step; None before.
    """
    copy = _copy(scheduler, _recording_class)
    copy.only, copy.output = timestep.reshape(1), None
    return copy


def last_steps(scheduler: Any, free: int) -> Any:
    """A copy whose first steps pass no gradient (truncated back-propagation, arXiv 2309.17400).

    Args:
        scheduler: of a pipeline.
        free: so many; the state after them is taken as the noise plus a constant, so that the noise still
            has a gradient.
    """
    copy = _copy(scheduler, _truncating_class)
    copy.free, copy.taken, copy.first = free, 0, None
    return copy


def _copy(scheduler: Any, subclass_of: Any) -> Any:
    """Shallow: `set_timesteps` replaces what a call changes."""
    kind = subclass_of(type(scheduler))
    copy = kind.__new__(kind)
    copy.__dict__.update(scheduler.__dict__)
    return copy


@functools.cache
def _ending_class(kind: Any) -> Any:
    @functools.wraps(kind.set_timesteps)  # pipelines ask for its signature
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.set_timesteps(self, *args, **kwargs)
        raise Ended

    return type(kind.__name__, (kind,), {"set_timesteps": set_timesteps})


@functools.cache
def _recording_class(kind: Any) -> Any:
    @functools.wraps(kind.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.set_timesteps(self, *args, **kwargs)
        only, ends = self.only.to(self.timesteps.device), self.timesteps[-1:]
        # SCM's last is the clean end, which a pipeline does not step from: one alone would be no step at all.
        self.timesteps = torch.cat([only, ends]) if len(self.timesteps) > 1 and ends == 0 else only

    def scale_model_input(self: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return sample

    @functools.wraps(kind.step)
    def step(self: Any, model_output: Tensor, *args: Any, **kwargs: Any) -> None:
        self.output = model_output
        raise Ended

    unscaled = property(lambda self: 1.0, lambda self, value: None)
    methods = {"set_timesteps": set_timesteps, "scale_model_input": scale_model_input, "step": step}
    return type(kind.__name__, (kind,), {**methods, "init_noise_sigma": unscaled})


@functools.cache
def _truncating_class(kind: Any) -> Any:
    @functools.wraps(kind.step)
    def step(
        self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        self.taken += 1
        if self.taken > self.free:
            return kind.step(self, model_output, timestep, sample, *args, **kwargs)
        self.first = sample if self.first is None else self.first
        with torch.no_grad():
            found = kind.step(self, model_output.detach(), timestep, sample.detach(), *args, **kwargs)
        if self.taken < self.free or not isinstance(found, tuple):
            return found
        return (found[0] + (self.first - self.first.detach()), *found[1:])

    return type(kind.__name__, (kind,), {"step": step})
