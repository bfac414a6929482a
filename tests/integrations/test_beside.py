"""What stands beside golden noise in pipelines of every family: adapters, offloading, small weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from torch import nn

from npnet_export import ExportSettings, export
from npnet_export.for_pipeline import config_for
from npnet_export.weights import WeightsRequest
from npnet_runtime import GoldenNoise
from npnet_training.sampling import Denoiser, draw_noise
from support.flow_pipelines import FLOWS, OPTIONS, SIZE
from support.pipelines import stable_diffusion

FAMILIES = ("sd3", "flux-dev", "qwen-image", "z-image", "sana", "lumina2")


def lora(pipe: Any, folder: Path) -> Any:
    torch.manual_seed(1)
    targets = [name for name, part in pipe.transformer.named_modules() if isinstance(part, nn.Linear)][-6:]
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    return pipe


def fp8(pipe: Any, folder: Path) -> Any:
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return pipe


def group_offload(pipe: Any, folder: Path) -> Any:
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
    )
    return pipe


def engine_wrapped(pipe: Any, folder: Path) -> Any:
    """A denoiser without parameters, as TensorRT's are."""
    network = pipe.transformer

    class Engine:
        config, dtype, device = network.config, network.dtype, network.device
        in_channels = getattr(network, "in_channels", None)
        cache_context = getattr(network, "cache_context", None)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return network(*args, **kwargs)

    pipe.__dict__["transformer"] = Engine()
    pipe._modules = getattr(pipe, "_modules", {})
    return pipe


class Int8Linear(nn.Module):
    """A linear layer whose weights are stored in 8 bits, as quantised checkpoints have them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach()
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
        self.register_buffer("stored", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    @property
    def weight(self) -> torch.Tensor:
        return self.stored * self.scale

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(values, self.weight, self.bias)


def quantised(pipe: Any, folder: Path) -> Any:
    linear = [name for name, part in pipe.transformer.named_modules() if isinstance(part, nn.Linear)]
    for name in linear:
        pipe.transformer.set_submodule(name, Int8Linear(pipe.transformer.get_submodule(name)))
    return pipe


def device_map(pipe: Any, folder: Path) -> Any:
    pipe.save_pretrained(folder / "model")
    mapped = diffusers.DiffusionPipeline.from_pretrained(folder / "model", device_map="cpu")
    mapped.set_progress_bar_config(disable=True)
    return mapped


def from_pipe(pipe: Any, folder: Path) -> Any:
    made = type(pipe).from_pipe(pipe)
    made.set_progress_bar_config(disable=True)
    return made


BESIDE: dict[str, Callable[[Any, Path], Any]] = {
    made.__name__: made
    for made in (lora, fp8, group_offload, engine_wrapped, quantised, device_map, from_pipe)
}


def engine_for(pipe: Any, folder: Path, options: dict[str, Any]) -> GoldenNoise:
    config, reads = config_for(pipe, height=SIZE, width=SIZE, **options)
    weights = WeightsRequest(None, random_seed=0, shapes=config, reads=reads)
    settings = ExportSettings(weights, folder / "engine", "e", "torch", device="cpu")
    return GoldenNoise(export(settings), device="cpu")


def images(pipe: Any, seeds: tuple[int, ...] = (7,), **options: Any) -> np.ndarray:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    fixed = {"height": SIZE, "width": SIZE, "num_inference_steps": 2, "output_type": "np"}
    given = {"prompt": "a red cat", "generator": generators if len(seeds) > 1 else generators[0], **options}
    return pipe(**fixed | given).images


def check(pipe: Any, golden: GoldenNoise, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """With an engine that gives the noise back nothing changes; with one that does not, the image."""
    plain = images(pipe, **options)
    golden.attach(pipe)
    other = images(pipe, **options)
    assert np.isfinite(other).all()
    assert not np.array_equal(other, plain)
    original = GoldenNoise.__call__

    def unchanged(self: GoldenNoise, noise: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        original(self, noise, *rest, **more)
        return noise

    with monkeypatch.context() as patch:
        patch.setattr(GoldenNoise, "__call__", unchanged)
        assert np.array_equal(images(pipe, **options), plain)
    golden.detach(pipe)
    assert np.array_equal(images(pipe, **options), plain)


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("name", FAMILIES)
def test_works_with(name: str, beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FLOWS[name]()
    golden = engine_for(plain, tmp_path, OPTIONS[name])
    pipe = BESIDE[beside](plain, tmp_path)
    check(pipe, golden, monkeypatch, **OPTIONS[name])


def test_callbacks_and_lists_of_generators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, options = FLOWS["flux-dev"](), OPTIONS["flux-dev"]
    golden = engine_for(pipe, tmp_path, options)
    seen: list[int] = []

    def callback(own: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        return {"latents": 0.9 * values["latents"]}

    options = {**options, "prompt": ["a", "b"], "true_cfg_scale": 2.0, "negative_prompt": ["x", "y"]}
    check(pipe, golden, monkeypatch, seeds=(1, 2), callback_on_step_end=callback, **options)
    assert seen[:2] == [0, 1]


def test_controlnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = FLOWS["flux-dev"]()
    left_out = ("in_channels", "out_channels")
    own = pipe.transformer.config.items()
    config = {name: value for name, value in own if name not in left_out and not name.startswith("_")}
    torch.manual_seed(2)
    controlnet = diffusers.FluxControlNetModel(**config, in_channels=64).eval()
    for parameter in controlnet.parameters():
        nn.init.normal_(parameter, std=0.05)
    controlled = diffusers.FluxControlNetPipeline(**pipe.components, controlnet=controlnet)
    controlled.set_progress_bar_config(disable=True)
    golden = engine_for(pipe, tmp_path, OPTIONS["flux-dev"])
    image = Image.new("RGB", (SIZE, SIZE), "red")
    check(controlled, golden, monkeypatch, control_image=image, **OPTIONS["flux-dev"])


def test_ip_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = stable_diffusion()
    torch.manual_seed(3)
    adapter: dict[str, torch.Tensor] = {}
    number = 1
    for name in pipe.unet.attn_processors:
        if "attn2" in name:
            width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for part in ("to_k_ip", "to_v_ip"):
                adapter[f"{number}.{part}.weight"] = torch.randn(width, 32)
            number += 2
    projection = {
        "proj.weight": torch.randn(4 * 32, 16), "proj.bias": torch.zeros(4 * 32),
        "norm.weight": torch.ones(32), "norm.bias": torch.zeros(32),
    }  # fmt: skip
    pipe.unet._load_ip_adapter_weights([{"ip_adapter": adapter, "image_proj": projection}])
    pipe.set_ip_adapter_scale(0.8)
    golden = engine_for(pipe, tmp_path, {})
    embeds = torch.randn(2, 1, 16)
    check(pipe, golden, monkeypatch, ip_adapter_image_embeds=[embeds])


def test_a_denoiser_of_its_own_ignores_what_is_attached(tmp_path: Path) -> None:
    """Training in front of an attached pipeline begins from plain noise."""
    pipe = FLOWS["sd3"]()
    golden = engine_for(pipe, tmp_path, OPTIONS["sd3"])
    noise = draw_noise([0], (16, 8, 8))
    outputs = []
    for attached in (False, True):
        if attached:
            golden.attach(pipe)
        denoiser = Denoiser(pipe, (SIZE, SIZE), OPTIONS["sd3"])
        with torch.no_grad():
            outputs.append(denoiser.predict(noise, 500.0, denoiser.encode(["a"]), 3.0))
    assert torch.equal(*outputs)
