"""A LoRA on the model's own denoiser as the trained network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from npnet_runtime import GoldenLora
from npnet_training.errors import ModelError, SettingsError, TrainError
from npnet_training.models import load_pipeline
from npnet_training.pairs import PairDataset
from npnet_training.rewards import registry
from npnet_training.sampling import Denoiser, draw_noise
from npnet_training.training.generator import FrozenGenerator
from npnet_training.training.generator_lora import GeneratorLora, noisiest
from npnet_training.training.loop import train
from npnet_training.training.loss_settings import SamplerSettings
from support.flow_pipelines import FLOWS, OPTIONS, SIZE, flux
from support.pipelines import sdxl, stable_diffusion
from support.training import launch, settings_for, validations

PROMPTS = ("a red cup", "two cats")
LORA: dict[str, Any] = {"kind": "generator-lora", "generator_lora": {"rank": 2, "targets": "attention"}}
REWARD: dict[str, Any] = {"names": ["redness"], "steps": 1}


@pytest.fixture(autouse=True)
def redness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "redness", "support.rewards:Redness")


def generator_of(pipe: Any, name: str = "", **changes: Any) -> FrozenGenerator:
    size = (SIZE, SIZE) if name else None
    settings = SamplerSettings.model_validate({"steps": 1} | changes)
    return FrozenGenerator(Denoiser(pipe, size, OPTIONS.get(name, {})), settings)


def filled(lora: GeneratorLora) -> GeneratorLora:
    generator = torch.Generator().manual_seed(1)
    for weight in lora.factors:
        weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    return lora


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_is_the_slope(checkpointing: bool) -> None:
    """Of a scalar of golden noise by the LoRA's weights, against central differences along the gradient."""
    generator = generator_of(stable_diffusion(), checkpointing=checkpointing)
    lora = filled(GeneratorLora(generator, "m", 2))
    noise = draw_noise([0, 1], generator.denoiser.latent_shape)
    weight = torch.randn(noise.shape, generator=torch.Generator().manual_seed(2))

    def value() -> Tensor:
        return (lora(noise, PROMPTS) * weight).sum()

    value().backward()
    gradients = [factor.grad.clone() for factor in lora.factors]
    norm = torch.sqrt(sum(g.square().sum() for g in gradients))
    ends = []
    with torch.no_grad():
        for sign in (1, -1):
            for factor, gradient in zip(lora.factors, gradients, strict=True):
                factor += sign * 1e-3 * gradient / norm
            ends.append(value())
            for factor, gradient in zip(lora.factors, gradients, strict=True):
                factor -= sign * 1e-3 * gradient / norm
    assert float((ends[0] - ends[1]) / 2e-3) == pytest.approx(float(norm), rel=0.02)


def test_begins_with_no_change_and_leaves_the_images_alone() -> None:
    generator = generator_of(stable_diffusion())
    noise = draw_noise([0, 1], generator.denoiser.latent_shape)
    before = generator.render(noise, PROMPTS)
    lora = GeneratorLora(generator, "m", 2)
    assert torch.equal(lora(noise, PROMPTS), noise)
    filled(lora)
    assert not torch.equal(lora(noise, PROMPTS), noise)
    assert torch.equal(generator.render(noise, PROMPTS), before)


@pytest.mark.parametrize("name", ["flux-dev", "sana-sprint", "z-image"])
def test_what_is_trained_is_what_is_served(name: str, tmp_path: Path) -> None:
    """The image of an attached pipeline is that of golden noise as the trained module gives it."""
    pipe = FLOWS[name]()
    generator = generator_of(pipe, name)
    lora = filled(GeneratorLora(generator, "m", 2))
    noise = draw_noise([5], generator.denoiser.latent_shape)
    with torch.no_grad():
        golden = lora(noise, ["a red cat"])
    lora.write(tmp_path / "best.safetensors", lora.state_dict())
    lora.adapter.remove()
    call = {"num_inference_steps": 2, "height": SIZE, "width": SIZE, "output_type": "latent"} | OPTIONS[name]

    def image(**options: Any) -> Tensor:
        return pipe("a red cat", generator=torch.Generator().manual_seed(5), **call, **options).images

    steered = generator.denoiser.steered
    with torch.no_grad():
        wanted = steered.images(
            golden, pipe.scheduler, prompt="a red cat", generator=torch.Generator().manual_seed(5), **call
        )
    plain = image()
    served = GoldenLora(tmp_path)
    served.attach(pipe)
    if name == "sana-sprint":  # its scheduler draws in every step, after the first draw or without it
        assert not torch.equal(image(), plain)
    else:
        torch.testing.assert_close(image(), wanted, atol=2e-4, rtol=2e-4)


def test_the_noisiest_timestep() -> None:
    assert float(noisiest(generator_of(sdxl()))) == 999
    assert float(noisiest(generator_of(flux(), "flux-dev"))) == 1000
    assert float(noisiest(generator_of(FLOWS["sana-sprint"](), "sana-sprint"))) == pytest.approx(
        1.5708, abs=1e-4
    )


def test_a_run(data: Path, tmp_path: Path) -> None:
    """Trains by reward, is resumed to the bit, starts from another; weights are an ordinary LoRA."""
    changes = {
        "network": LORA,
        "loss": "reward",
        "reward": REWARD,
        "batch_size": 8,
        "validation": {"max_pairs": 8},
    }
    changes["optimizer"] = {"learning_rate": 1e-2, "ema": 0.9}
    whole = settings_for(data, tmp_path / "whole", epochs=1, max_steps=4, **changes)
    train(whole)
    found = validations(tmp_path / "whole")
    assert found[-1]["loss"] < found[0]["loss"] or len(found) == 1
    for steps in (2, 4):
        halves = settings_for(
            data, tmp_path / "halves", epochs=1, max_steps=steps, resume=steps == 4, **changes
        )
        train(halves)
    one, other = (load_file(tmp_path / run / "last.safetensors") for run in ("whole", "halves"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(name.startswith("unet.") and ".lora_" in name for name in one)
    report = json.loads((tmp_path / "whole" / "run.json").read_text())["report"]
    assert set(report["explained"]) == {"whole", "prompts of others"}
    start_from = str(tmp_path / "whole" / "last.safetensors")
    train(settings_for(data, tmp_path / "again", epochs=1, max_steps=1, start_from=start_from, **changes))
    pipe, _ = load_pipeline(PairDataset.open([data]).info.model)
    GoldenLora(tmp_path / "whole").attach(pipe)
    assert pipe("a cup", num_inference_steps=1).images


def test_pairs_teach_it_too(data: Path, tmp_path: Path) -> None:
    train(settings_for(data, tmp_path / "run", epochs=1, max_steps=2, network=LORA, batch_size=8))
    assert (tmp_path / "run" / "last.safetensors").is_file()


@pytest.mark.slow
def test_two_processes_train_the_same(data: Path, tmp_path: Path) -> None:
    changes = {"network": LORA, "epochs": 1, "max_steps": 3, "batch_size": 8}
    train(settings_for(data, tmp_path / "one", **changes))
    launch("npnet_training.training.cli", settings_for(data, tmp_path / "two", **changes), tmp_path)
    one, two = (load_file(tmp_path / run / "last.safetensors") for run in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-3)


def test_what_does_not_go_together(data: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"precision": "bf16"}, "give --reward.dtype bfloat16"),
        ({"text": "own:clip-l"}, "precision, compile and text"),
    ):
        with pytest.raises(ValueError, match=message):
            settings_for(data, tmp_path / "no", network=LORA, **changes)
    model = PairDataset.open([data]).info.model
    several = {"loss": "reward", "reward": REWARD, "model": [model, f"{model}/."]}
    with pytest.raises((SettingsError, ModelError), match="as a LoRA belongs to one"):
        train(settings_for(data, tmp_path / "no", network=LORA, **several))
    with pytest.raises(TrainError, match="--start-from"):
        train(settings_for(data, tmp_path / "no", network=LORA, start_from=str(tmp_path / "nothing")))
