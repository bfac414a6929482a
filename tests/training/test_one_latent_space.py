"""One network in front of several models: FLUX.1 and Z-Image have one autoencoder and different texts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTextModel

from npnet_export.cli import main as export
from npnet_runtime import GoldenNoise
from npnet_runtime.errors import InputError, PipelineError
from npnet_runtime.integrations.comfyui.checks import positive_prompt
from npnet_runtime.integrations.diffusers.latent_space import latent_space_of
from npnet_training.collecting.cli import main as collect
from npnet_training.errors import SettingsError
from npnet_training.evaluation.by_model import by_model
from npnet_training.evaluation.cli import main as evaluate
from npnet_training.evaluation.settings import EvaluateSettings
from npnet_training.rewards import registry
from npnet_training.training.cli import main as train
from npnet_training.training.front import drawn
from npnet_training.training.reward_loss import RewardLoss
from support.flow_pipelines import SIZE, flux, sd3, z_image
from support.pipelines import clip_text, clip_tokenizer

SMALL = ["--network.kind", "prompt-attention-2", "--network.prompt-attention-2.channels", "16,16"]
CALL: dict[str, Any] = {"num_inference_steps": 2, "height": SIZE, "width": SIZE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models, a third of another latent space, a text encoder, and prompts with noises of FLUX."""
    root = tmp_path_factory.mktemp("space")
    first, second = flux(guidance=False), z_image()
    second.register_modules(vae=first.vae)
    first.save_pretrained(root / "flux")
    second.save_pretrained(root / "z")
    sd3().save_pretrained(root / "sd3")
    clip().save_pretrained(root / "clip" / "text_encoder")
    clip_tokenizer().save_pretrained(root / "clip" / "tokenizer")
    (root / "prompts.txt").write_text("\n".join(f"a prompt {number}" for number in range(12)))
    command = ["--model", str(root / "flux"), "--prompts", str(root / "prompts.txt"), "--batch", "4"]
    assert (
        collect([*command, "--output", str(root / "pairs"), "--sizes", f"{SIZE}x{SIZE}", "--no-targets"]) == 0
    )
    return root


def clip() -> CLIPTextModel:
    torch.manual_seed(8)
    return clip_text(16, projection=False)


@pytest.fixture(autouse=True)
def redness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "redness", "support.rewards:Redness")
    monkeypatch.setattr("npnet_training.scorers.clip.CLIPScore", Brightness)


class Brightness:
    """Scores images by their mean."""

    def __init__(self, **_: Any) -> None:
        pass

    def score(self, prompts: list[str], images: list[Image.Image]) -> list[float]:
        return [float(np.asarray(image).mean()) / 255 for image in images]


def training(folder: Path, models: str, run: str, *options: str) -> int:
    names = ",".join(str(folder / name) for name in models.split(","))
    command = ["--data", str(folder / "pairs"), "--output", str(folder / run), "--model", names, *SMALL]
    command += ["--loss", "reward", "--reward.names", "redness", "--reward.steps", "1", "--epochs", "1"]
    command += ["--batch-size", "4", "--validation.share", "0", "--cache-dir", str(folder / "cache")]
    return train([*command, *options])


@pytest.fixture(scope="module")
def engine(folder: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BUILT_IN, "redness", "support.rewards:Redness")
        assert training(folder, "flux,z", "run", "--text", f"own:{folder / 'clip'}") == 0
    made = str(folder / "engine")
    weights = str(folder / "run" / "last.safetensors")
    assert export(["--weights", weights, "--output", made, "--engine", "torch", "--device", "cpu"]) == 0
    return made


def test_one_engine_serves_both_models(folder: Path, engine: str) -> None:
    golden = GoldenNoise(engine, device="cpu")
    assert golden.bundle.manifest.text_encoder.width == 16
    assert "by its own encoder" in golden.report()
    for pipe in (flux(guidance=False), z_image()):
        pipe.vae = flux(guidance=False).vae
        images = []
        for attached in (False, True):
            if attached:
                golden.attach(pipe)
            generator = torch.Generator().manual_seed(1)
            images.append(pipe("a red cat", **CALL, generator=generator, output_type="pt").images)
        assert not torch.equal(*images)


def test_what_it_reads_is_the_text_alone(folder: Path, engine: str) -> None:
    golden = GoldenNoise(engine, device="cpu")
    prompt = golden.encode(["a red cat", "a dog"])
    assert tuple(prompt.embeds.shape) == (2, 77, 16)
    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    direct = golden(noise, prompt)
    pipe = flux(guidance=False)
    with pytest.raises(PipelineError, match="expected the prompt as text"):
        golden.attach(pipe)
        embeds, pooled, _ = pipe.encode_prompt("a cat", None)
        pipe(prompt_embeds=embeds, pooled_prompt_embeds=pooled, **CALL)
    pipe.vae = flux(guidance=False).vae
    again = golden.using()(noise, golden.encode(["a red cat", "a dog"]))
    assert torch.equal(direct, again)
    assert not torch.equal(direct[:1], golden(noise[:1], golden.encode(["a dog"])))


def test_a_conditioning_of_comfyui_has_no_text(engine: str) -> None:
    manifest = GoldenNoise(engine, device="cpu").bundle.manifest
    with pytest.raises(InputError, match="it serves diffusers only"):
        positive_prompt([[torch.zeros(1, 77, 16), {}]], manifest)


def test_another_latent_space_is_refused(folder: Path, engine: str) -> None:
    golden = GoldenNoise(engine, device="cpu")
    pipe = sd3()
    with pytest.raises(PipelineError, match=r"expected one of the latent space .* shift 0.1, given 0.06"):
        golden.attach(pipe)
    pipe = flux(guidance=False)
    pipe.vae.decoder.conv_in.weight.data.mul_(1.5)
    with pytest.warns(UserWarning, match="has other weights"):
        golden.attach(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        golden.attach(flux(guidance=False).to(torch.bfloat16))


def test_the_latent_space_is_that_of_the_autoencoder() -> None:
    space = latent_space_of(flux())
    assert (space.channels, space.factor, space.shift) == (16, 8, 0.1)
    assert space.weights == latent_space_of(flux().to(torch.float16)).weights
    assert latent_space_of(flux().to(torch.bfloat16)).weights is None
    assert not space.differences(latent_space_of(flux().to(torch.bfloat16)))


def test_a_text_encoder_that_changed_is_refused(folder: Path, engine: str, tmp_path: Path) -> None:
    clip().save_pretrained(tmp_path / "text_encoder")
    clip_tokenizer().save_pretrained(tmp_path / "tokenizer")
    same = GoldenNoise(engine, device="cpu", text_encoder=str(tmp_path))
    assert same.encode(["a cat"]).embeds.shape == (1, 77, 16)
    other = clip()
    other.get_input_embeddings().weight.data.add_(1)
    other.save_pretrained(tmp_path / "text_encoder")
    with pytest.raises(InputError, match="expected the weights that the network was trained with"):
        GoldenNoise(engine, device="cpu", text_encoder=str(tmp_path)).encode(["a cat"])
    with pytest.raises(InputError, match="if it lies elsewhere"):
        GoldenNoise(engine, device="cpu", text_encoder=str(tmp_path / "nothing")).encode(["a cat"])


def test_models_that_do_not_go_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert training(folder, "flux,z", "no") == 2
    assert "which has another text encoder" in capsys.readouterr().err
    assert training(folder, "flux,sd3", "no", "--text", f"own:{folder / 'clip'}") == 2
    assert "expected models of one latent space" in capsys.readouterr().err
    assert training(folder, "flux,flux", "no") == 2
    assert "the same one twice" in capsys.readouterr().err
    assert training(folder, "flux", "no", "--text", "clip-l") == 2
    assert "expected model or own:NAME" in capsys.readouterr().err
    assert training(folder, "flux", "no", "--text", f"own:{folder / 'nothing'}") == 2
    assert "found no such thing" in capsys.readouterr().err
    assert training(folder, "flux", "no", "--loss", "mse") == 2
    assert "only loss reward is had from several models" in capsys.readouterr().err
    assert not (folder / "no").exists() or not [*(folder / "no").iterdir()]


class Fixed:
    """A generator whose images are all of one brightness."""

    def __init__(self, value: float) -> None:
        self.value = value

    def render(self, noise: torch.Tensor, prompts: Any, **_: Any) -> torch.Tensor:
        return self.value + 0 * noise.mean((1, 2, 3), keepdim=True).expand(-1, 3, 4, 4)


class Mean:
    """The reward of an image is its brightness."""

    def reward(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return images.mean((1, 2, 3))


def test_rewards_are_averaged_or_drawn() -> None:
    from npnet_runtime.inputs.texts import Prompt
    from npnet_training.training.batch import TrainBatch
    from npnet_training.training.loss_settings import RewardLossSettings

    noise = torch.zeros(2, 4, 4, 4, requires_grad=True)
    generators: Any = [Fixed(0.2), Fixed(0.6)]
    found: dict[str, set[float]] = {}
    for way in ("averaged", "drawn"):
        settings = RewardLossSettings(names=("mean",), of_models=way, steps=1, penalty_weight=0.0)
        loss = RewardLoss(generators, {"mean": Mean()}, settings)
        for seed in range(20):
            batch = TrainBatch(
                noise.detach(), None, Prompt(noise.detach()), None, ("a", "b"), (seed, 100 + seed)
            )
            found.setdefault(way, set()).add(round(-float(loss(noise, batch).detach()), 4))
    assert found == {"averaged": {0.4}, "drawn": {0.2, 0.6}}
    assert drawn(generators, [3, 4]) is drawn(generators, [3, 4])


def test_evaluated_over_models(folder: Path, engine: str, tmp_path: Path) -> None:
    models = f"{folder / 'flux'},{folder / 'z'}"
    command = ["--model", models, "--prompts", str(folder / "prompts.txt"), "--max-prompts", "4"]
    command += ["--output", str(tmp_path / "found"), "--arms", f"golden:{engine}", "--scorers", "clipscore"]
    assert evaluate([*command, "--sample.steps", "1", "--size", f"{SIZE}x{SIZE}", "--batch", "4"]) == 0
    table = (tmp_path / "found" / "models.md").read_text()
    values = json.loads((tmp_path / "found" / "models.json").read_text())
    assert [*values] == models.split(",")
    for model, results in values.items():
        assert f"| {model} | golden:{engine} | clipscore |" in table
        assert results[f"golden:{engine}"]["scores"]["clipscore"]["mean"] > 0


def test_each_model_has_a_folder_of_its_own() -> None:
    given = {"prompts": "p", "output": "out", "scorers": ("clipscore",)}
    parts = by_model(EvaluateSettings(model="a/b,sdxl", **given))
    assert [(part.model, str(part.output)) for part in parts] == [("a/b", "out/a-b"), ("sdxl", "out/sdxl")]
    assert by_model(EvaluateSettings(model="a/b", **given))[0].output == Path("out")
    with pytest.raises(SettingsError, match="expected different models"):
        by_model(EvaluateSettings(model="a/b,a/b", **given))
    with pytest.raises(SettingsError, match="--revision"):
        by_model(EvaluateSettings(model="a/b,c/d", revision="x", **given))
    with pytest.raises(SettingsError, match="expected names, folders or repositories, given 'nope'"):
        by_model(EvaluateSettings(model="sdxl,nope", **given))
