"""Tiny pipelines of every supported class."""

from __future__ import annotations

from typing import Any

import pytest

from npnet_training.sampling import Denoiser
from support.pipelines import PIPELINES


@pytest.fixture(scope="module", params=list(PIPELINES))
def any_denoiser(request: pytest.FixtureRequest) -> Denoiser:
    return Denoiser(PIPELINES[request.param]())


@pytest.fixture
def with_scheduler():
    """A denoiser of a tiny pipeline whose scheduler has other settings."""
    import diffusers

    def make(name: str, scheduler: str | None = None, **config: Any) -> Denoiser:
        pipe = PIPELINES[name]()
        cls = type(pipe.scheduler) if scheduler is None else getattr(diffusers, scheduler)
        pipe.scheduler = cls.from_config(pipe.scheduler.config, **config)
        return Denoiser(pipe)

    return make
