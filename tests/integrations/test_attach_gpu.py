"""`golden.attach(pipe)` on CUDA: side stream, generators on both devices, real offloading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.errors import PipelineError

pytestmark = pytest.mark.gpu
Run = Callable[..., np.ndarray]


@pytest.fixture
def golden(text_bundle: EngineBundle) -> GoldenNoise:
    return GoldenNoise(text_bundle, device="cuda")


@pytest.mark.usefixtures("identity")
@pytest.mark.parametrize("generator", ["cpu", "cuda", "global"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_all_else_is_as_before(
    pipe: Any, golden: GoldenNoise, run: Run, generator: str, dtype: torch.dtype
) -> None:
    pipe.to("cuda", dtype)

    def call() -> np.ndarray:
        torch.manual_seed(3)
        given = None if generator == "global" else torch.Generator(generator).manual_seed(3)
        return run(pipe, ["a", "b"], generator=given)

    plain = call()
    golden.attach(pipe)
    np.testing.assert_allclose(call(), plain, atol=1e-3)


def test_starts_from_golden_noise(sdxl: Any, golden: GoldenNoise, run: Run) -> None:
    """What the side stream made is whole when the main stream reads it, call after call."""
    sdxl.to("cuda")
    embeds = sdxl.encode_prompt("a red cat", device="cuda", do_classifier_free_guidance=False)[0]
    golden.attach(sdxl)
    for seed in range(20):
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)).cuda()
        expected = golden(noise, embeds)
        seen: list[torch.Tensor] = []
        original = sdxl.scheduler.scale_model_input

        def watch(
            sample: torch.Tensor, *rest: Any, original: Any = original, seen: Any = seen
        ) -> torch.Tensor:
            seen.append(sample[:1] / sdxl.scheduler.init_noise_sigma)
            return original(sample, *rest)

        sdxl.scheduler.scale_model_input = watch
        run(sdxl, seed=seed, num_inference_steps=1)
        sdxl.scheduler.scale_model_input = original
        torch.testing.assert_close(seen[0], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.usefixtures("identity")
def test_model_offload(pipe: Any, golden: GoldenNoise, run: Run) -> None:
    plain = run(pipe.to("cuda"))
    pipe.to("cpu").enable_model_cpu_offload()
    golden.attach(pipe)
    np.testing.assert_allclose(run(pipe), plain, atol=1e-3)
    np.testing.assert_allclose(run(pipe), plain, atol=1e-3)


def test_another_device(sdxl: Any, golden: GoldenNoise, run: Run) -> None:
    golden.attach(sdxl)
    with pytest.raises(PipelineError, match=r"on cuda:0.*runs on cpu; move it with pipe.to\('cuda:0'\)"):
        run(sdxl)
