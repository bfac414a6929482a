"""Engines and pipelines that fit each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from npnet_export import ExportSettings, export
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.weights import checkpoint
from support.pipelines import PIPELINES, TEXT


@pytest.fixture(scope="session")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    """An engine for the small pipelines, batches up to 3."""
    folder = tmp_path_factory.mktemp("text")
    checkpoint.write(folder / "text.safetensors", random_state(TEXT, 0), TEXT)
    weights = WeightsRequest(None, str(folder / "text.safetensors"))
    return export(ExportSettings(weights, folder / "engine", "text", "torch", max_batch=3, device="cpu"))


@pytest.fixture
def golden(text_bundle: EngineBundle) -> GoldenNoise:
    return GoldenNoise(text_bundle, device="cpu")


@pytest.fixture(params=PIPELINES)
def pipe(request: pytest.FixtureRequest) -> Any:
    """A small pipeline of each kind."""
    return PIPELINES[request.param]()


@pytest.fixture
def sdxl() -> Any:
    return PIPELINES["sdxl"]()


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does its work and then gives the noise back: images are those of the plain pipeline."""
    original = GoldenNoise.__call__

    def unchanged(self: GoldenNoise, noise: Any, prompt_embeds: Any, **options: Any) -> torch.Tensor:
        made = original(self, noise, prompt_embeds, **options)
        source = noise if isinstance(noise, torch.Tensor) else noise.noise
        assert made.shape == source.shape
        assert not torch.equal(made, source)
        return source.clone()

    monkeypatch.setattr(GoldenNoise, "__call__", unchanged)


def run(pipe: Any, prompt: Any = "a red cat", *, seed: int = 7, **options: Any) -> np.ndarray:
    """Images of one short call."""
    options = {"generator": torch.Generator().manual_seed(seed)} | options
    if "HunyuanDiT" in type(pipe).__name__:
        options["use_resolution_binning"] = False
    return pipe(prompt, **({"num_inference_steps": 2, "output_type": "np"} | options)).images


@pytest.fixture(name="run")
def _run() -> Callable[..., np.ndarray]:
    return run
