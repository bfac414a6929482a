"""Losses through the sampler of the dataset's own model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from npnet_runtime.networks.prompt_attention import PromptAttentionConfig
from npnet_runtime.networks.registry import network_for
from npnet_training.errors import DatasetError, RewardError, SettingsError
from npnet_training.pairs import PairDataset, PairInfo, Pairs, write_pairs
from npnet_training.pairs.shard import shard_path
from npnet_training.rewards import registry
from npnet_training.sampling import Denoiser, draw_noise
from npnet_training.training import generator as generators
from npnet_training.training.batch import TrainBatch
from npnet_training.training.generator import FrozenGenerator
from npnet_training.training.image_loss import ImageLoss
from npnet_training.training.loop import train
from npnet_training.training.loss_settings import ImageLossSettings, RewardLossSettings, SamplerSettings
from npnet_training.training.reward_loss import RewardLoss, anchor_penalty, change_penalty, norm_penalty
from npnet_training.training.settings import TrainSettings
from support.pipelines import PIPELINES, stable_diffusion
from support.rewards import Blind, Redness, Single
from support.training import ATTENTION, SMALL, launch, settings_for, validations

PROMPTS = ("a red cup", "two cats")
STEPS: dict[str, Any] = {"steps": 3}
STEP = 0.02  # of weights whose norm is about 10


@pytest.fixture(autouse=True)
def redness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "redness", "support.rewards:Redness")


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser(stable_diffusion())


def batch_for(denoiser: Denoiser, target: Tensor | None = None) -> TrainBatch:
    source = draw_noise([0, 1], denoiser.latent_shape)
    prompt = denoiser.prompt(denoiser.encode(PROMPTS, unconditional=False))
    return TrainBatch(source, target, prompt, None, PROMPTS, (0, 1))


def image_loss(denoiser: Denoiser, **changes: Any) -> ImageLoss:
    settings = ImageLossSettings.model_validate(STEPS | changes)
    return ImageLoss(FrozenGenerator(denoiser, settings), settings)


def reward_loss(denoiser: Denoiser, reward: Any = None, **changes: Any) -> RewardLoss:
    settings = RewardLossSettings.model_validate(STEPS | {"names": ("it",)} | changes)
    return RewardLoss([FrozenGenerator(denoiser, settings)], {"it": reward or Redness()}, settings)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("kind", ["latents", "pixels", "reward"])
def test_gradient_through_all_steps_is_the_slope(name: str, kind: str) -> None:
    """Of the loss by the network's weights, against central differences along the gradient.

    The pipeline computes in float32, so the differences are good to about 1 %: their own error is of second
    order in the step, and rounding of the loss, over the step.
    """
    pipe = PIPELINES[name]()
    pipe.scheduler.register_to_config(clip_sample=False)  # which has no slope
    denoiser = Denoiser(pipe)
    torch.manual_seed(3)
    network = network_for(PromptAttentionConfig(4, 16, 16, 77, 32, channels=(8, 16), heads=2))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = batch_for(denoiser, 1.3 * draw_noise([5, 6], denoiser.latent_shape))
    loss: Any = reward_loss(denoiser) if kind == "reward" else image_loss(denoiser, space=kind, guidance=2.0)

    def value() -> Tensor:
        return loss(network(batch.source, batch.prompt.embeds, None), batch)

    weights = list(network.parameters())
    gradients = torch.autograd.grad(value(), weights)
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    assert norm > 0
    ends = []
    with torch.no_grad():
        for move in (STEP, -2 * STEP):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight += move * gradient / norm
            ends.append(value().double())
    slope = (ends[0] - ends[1]) / (2 * STEP)
    torch.testing.assert_close(slope.float(), norm, rtol=0.02, atol=0)


def test_truncated_gradients_still_reach_the_noise(denoiser: Denoiser) -> None:
    batch = batch_for(denoiser)
    found = []
    for steps in (None, 1, 3):
        golden = batch.source.clone().requires_grad_()
        reward_loss(denoiser, gradient_steps=steps)(golden, batch).backward()
        assert golden.grad is not None
        found.append(golden.grad)
    torch.testing.assert_close(found[2], found[0])
    assert found[1].abs().max() > 0
    assert (found[1] - found[0]).abs().max() > 1e-2 * found[0].abs().max()


def test_checkpointing_changes_nothing(denoiser: Denoiser) -> None:
    batch = batch_for(denoiser)
    found = []
    for checkpointing in (True, False):
        golden = batch.source.clone().requires_grad_()
        reward_loss(denoiser, checkpointing=checkpointing)(golden, batch).backward()
        found.append(golden.grad)
    torch.testing.assert_close(found[0], found[1])


def test_image_loss_is_zero_at_the_reference_only(denoiser: Denoiser) -> None:
    target = draw_noise([7, 8], denoiser.latent_shape)
    batch = batch_for(denoiser, target)
    for space in ("latents", "pixels"):
        loss = image_loss(denoiser, space=space, guidance=3.0)
        assert loss(target, batch) == 0
        assert loss(batch.source, batch) > 1e-6
    # NoiseRefine's: the guided image of the source, whatever the target
    guided = image_loss(denoiser, reference="source", reference_guidance=4.0)
    assert guided(batch.source, batch_for(denoiser)) > 1e-6
    more = image_loss(denoiser, reference="source", reference_guidance=4.0, noise_weight=2.0)
    golden = batch.source + 0.5
    torch.testing.assert_close(more(golden, batch), guided(golden, batch) + 0.5, rtol=1e-4, atol=1e-5)
    with pytest.raises(DatasetError, match="needs pairs with targets"):
        image_loss(denoiser)(batch.source, batch_for(denoiser))


def test_reward_loss_is_penalty_less_reward(denoiser: Denoiser) -> None:
    batch = batch_for(denoiser)
    generator = FrozenGenerator(denoiser, SamplerSettings(**STEPS))
    golden = batch.source + 0.2
    images = generator.render(golden, PROMPTS)
    assert images.shape == (2, 3, 32, 32)
    reward = Redness().reward(images, PROMPTS).mean()
    loss = reward_loss(denoiser, weights=(3.0,), penalty_weight=5.0)
    expected = 5 * 0.5 * torch.tensor(0.04) - 3 * reward
    torch.testing.assert_close(loss(golden, batch), expected)
    plain = generator.render(batch.source, PROMPTS)
    apart = (images - plain).unflatten(3, (2, 16)).unflatten(2, (2, 16)).mean((3, 5)).abs().mean()
    assert apart > 1e-4
    held = reward_loss(denoiser, weights=(3.0,), penalty_weight=5.0, anchor_weight=700.0, anchor_cells=2)
    torch.testing.assert_close(held(golden, batch), expected + 700 * apart)


def test_anchor_is_blind_to_detail_and_to_areas_that_stay() -> None:
    plain = torch.rand(3, 3, 32, 32)
    detail = torch.randn(3, 3, 32, 32)
    cells = detail.unflatten(3, (4, 8)).unflatten(2, (4, 8))
    flat = (cells - cells.mean((3, 5), keepdim=True)).flatten(4, 5).flatten(2, 3)
    assert anchor_penalty(plain + flat, plain, 4).max() < 1e-6
    one_cell = torch.zeros_like(plain)
    one_cell[1, :, 8:16, :8] = 0.5
    assert anchor_penalty(plain + one_cell, plain, 4).tolist() == pytest.approx([0, 0.5 / 16, 0])
    assert anchor_penalty(plain + 0.5, plain, 4).tolist() == pytest.approx([0.5] * 3)


def test_penalties() -> None:
    source = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(change_penalty(source, source), torch.zeros(3))
    torch.testing.assert_close(change_penalty(source + 2, source), torch.full((3,), 2.0))
    # the density of the norm of N(0, I), from the library
    norms = source.flatten(1).norm(dim=1)
    squared = torch.distributions.Chi2(torch.tensor(256.0))
    density = squared.log_prob(norms.square()) + (2 * norms).log()
    found = norm_penalty(source, source)
    torch.testing.assert_close(found - found[0], density[0] - density, rtol=1e-3, atol=1e-3)
    likely = source * (255**0.5 / norms)[:, None, None, None]
    torch.testing.assert_close(norm_penalty(likely, source), torch.zeros(3), rtol=0, atol=1e-3)
    assert (norm_penalty(1.2 * likely, source) > 1).all()
    assert (norm_penalty(0.8 * likely, source) > 1).all()


def test_prompts_are_encoded_once_and_alone(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    encode = denoiser.encode
    monkeypatch.setattr(denoiser, "encode", lambda prompts: asked.append(prompts) or encode(prompts))
    generator = FrozenGenerator(denoiser, SamplerSettings())
    first = generator.encode(["a", "b", "a"])
    assert asked == [["a"], ["b"]]
    torch.testing.assert_close(first.arguments(True), encode(["a", "b", "a"]).arguments(True))
    monkeypatch.setattr(generators, "CACHE_BYTES", 3 * first.prompt_embeds[0].nbytes)
    generator.encode(["c", "d"])
    generator.encode(["a", "b"])
    assert asked[2:] == [["c"], ["d"], ["b"]]  # a was used after b


LOSSES: dict[str, dict[str, Any]] = {
    "image": {"loss": "image", "image": {"steps": 2}},
    "reward": {"loss": "reward", "reward": {"steps": 2, "names": ["redness"], "weights": [30]}},
}


@pytest.mark.parametrize("network", [SMALL, ATTENTION], ids=["npnet", "prompt-attention"])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_falls(data: Path, tmp_path: Path, loss: str, network: dict[str, Any]) -> None:
    validation = {"share": 0.2, "every": 4}
    changes = {"network": network, "validation": validation, "epochs": 4, **LOSSES[loss]}
    train(settings_for(data, tmp_path / "run", **changes))
    found = [entry["loss"] for entry in validations(tmp_path / "run")]
    assert found[-1] < (0.8 * found[0] if loss == "image" else found[0] - 0.5)
    assert (tmp_path / "run" / "best.safetensors").exists()
    assert (tmp_path / "run" / "curves.png").exists()


def test_penalty_holds_the_noise(data: Path, tmp_path: Path) -> None:
    changes = []
    for weight in (0.0, 300.0):
        reward = {"steps": 1, "names": ["redness"], "penalty_weight": weight}
        summary = train(settings_for(data, tmp_path / str(weight), loss="reward", reward=reward, epochs=4))
        changes.append(summary["report"]["noise"]["change"])
    assert changes[1] < 0.5 * changes[0]


@pytest.mark.parametrize("loss", LOSSES)
def test_resumed_run_is_the_same_to_the_bit(data: Path, tmp_path: Path, loss: str) -> None:
    options = {"validation": {"share": 0.2, "every": 2}, "epochs": 1, **LOSSES[loss]}
    train(settings_for(data, tmp_path / "whole", **options))
    train(settings_for(data, tmp_path / "cut", max_steps=2, **options))
    train(settings_for(data, tmp_path / "cut", resume=True, **options))
    for name in ("best.safetensors", "last.safetensors"):
        whole, cut = (load_file(tmp_path / run / name) for run in ("whole", "cut"))
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
    changed = options | {loss: {**options[loss], "steps": 3}}
    with pytest.raises(Exception, match=f"(?s)of another run:.*{loss}: expected .*'steps': 2"):
        train(settings_for(data, tmp_path / "cut", resume=True, **changed))


def test_two_processes_train_what_one_does(data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 2, **LOSSES["image"]}
    launch("npnet_training.training.cli", settings_for(data, tmp_path / "two", **options), tmp_path)
    train(settings_for(data, tmp_path / "one", **options))
    one, two = (validations(tmp_path / run) for run in ("one", "two"))
    assert two[0] == pytest.approx(one[0], rel=1e-4)


def test_wrong_rewards(denoiser: Denoiser, data: Path, tmp_path: Path) -> None:
    batch = batch_for(denoiser)
    golden = batch.source.clone().requires_grad_()
    with pytest.raises(RewardError, match=r"the reward it has no gradient"):
        reward_loss(denoiser, Blind())(golden, batch)
    with torch.no_grad():
        reward_loss(denoiser, Blind())(golden, batch)
    with pytest.raises(RewardError, match=r"must give 2 numbers for as many images, given a tensor of shape"):
        reward_loss(denoiser, Single())(golden, batch)
    with pytest.raises(SettingsError, match=r"add --reward.names NAME"):
        settings = RewardLossSettings()
        RewardLoss([FrozenGenerator(denoiser, settings)], {}, settings)
    with pytest.raises(RewardError, match=r"unknown reward 'beauty': expected one of clipscore, pickscore, "):
        train(settings_for(data, tmp_path / "run", loss="reward", reward={"names": ["beauty"]}))


def test_pairs_that_were_not_kept_have_a_source_and_a_prompt(data: Path, tmp_path: Path) -> None:
    info = PairInfo.read(data)
    info.write(tmp_path / "pairs")
    source, nothing = draw_noise(range(32), info.latent_shape), dict[str, list[float]]()
    prompts = [f"prompt {chr(97 + row % 16)}" for row in range(32)]
    write_pairs(
        shard_path(tmp_path / "pairs", 0),
        Pairs(range(32), prompts, list(range(32)), source, [False] * 32, [""] * 32, nothing, nothing),
        info,
    )
    changes: dict[str, Any] = {"max_steps": 1, "network": ATTENTION, "cache_dir": data.parent / "cache"}
    with pytest.raises(DatasetError, match="of 32 collected none was kept"):
        train(settings_for(tmp_path / "pairs", tmp_path / "mse", **changes))
    summary = train(settings_for(tmp_path / "pairs", tmp_path / "run", **changes, **LOSSES["reward"]))
    assert summary["pairs"]["train"] + summary["pairs"]["validation"] == 32


def test_bfloat16_model(data: Path) -> None:
    info = PairDataset.open([data]).info
    noise = draw_noise([0, 1], info.latent_shape)
    found = []
    for dtype in ("float32", "bfloat16"):
        settings = RewardLossSettings(steps=2, names=("it",), dtype=dtype)
        generator = FrozenGenerator.load(info, settings, torch.device("cpu"))
        golden = noise.clone().requires_grad_()
        images = generator.render(golden, PROMPTS)
        assert images.dtype == torch.float32
        Redness().reward(images, PROMPTS).sum().backward()
        found.append(golden.grad.flatten())
    assert torch.cosine_similarity(found[0], found[1], dim=0) > 0.95


def test_another_model_is_refused(data: Path) -> None:
    info = PairDataset.open([data]).info
    device = torch.device("cpu")
    FrozenGenerator.load(info, SamplerSettings(), device)
    with pytest.raises(DatasetError, match=r"with revision abc, but it has [0-9a-f]+ now"):
        FrozenGenerator.load(replace(info, revision="abc"), SamplerSettings(), device)
    with pytest.raises(DatasetError, match=r"with latent channels 3, but it has 4 now"):
        FrozenGenerator.load(replace(info, latent_shape=(3, 16, 16)), SamplerSettings(), device)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "reward"}, "loss reward needs reward.names"),
        ({"reward": {"names": ["a", "b"], "weights": [1]}}, "expected one for each of 2 rewards"),
        ({"image": {"steps": 2, "gradient_steps": 3}}, "gradient_steps 3 must be at most steps 2"),
        ({"image": {"reference": "source", "guidance": 2, "reference_guidance": 2}}, "unchanged noise"),
    ],
)
def test_contradictory_settings(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainSettings.model_validate({"data": ["x"], "output": tmp_path, **wrong})


def test_dry_run_makes_images_too(data: Path, tmp_path: Path) -> None:
    from npnet_training.training.estimate import estimate

    assert "96 pairs of" in estimate(settings_for(data, tmp_path / "run", **LOSSES["reward"]))
    assert not (tmp_path / "run").exists()
