from pathlib import Path

import pytest
import torch

from npnet_training import distill
from npnet_training.models import load_pipeline
from npnet_training.sampling import Conditioning, Denoiser, draw_noise, sample_latents
from npnet_training.shapes.grammar import prompts
from npnet_training.shapes.networks import make_scheduler


class Exact(torch.nn.Module):
    """Predicts v of the one scene there is: DDIM ends in it from any noise, in any number of steps."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, scene: torch.Tensor) -> None:
        super().__init__()
        self.scene = scene
        self.kept = make_scheduler().alphas_cumprod

    def forward(self, latents: torch.Tensor, step: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        kept = self.kept[step.long()]
        alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        noise = (latents - alpha * self.scene) / sigma
        return (alpha * noise - sigma * self.scene,)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_targets_are_the_clean_latents_that_end_where_the_teacher_does(built: Path, steps: int) -> None:
    pipe, _ = load_pipeline(str(built))
    config = pipe.unet.config
    pipe.unet = Exact(torch.randn(4, 16, 16))
    pipe.unet.config = config
    denoiser = Denoiser(pipe)
    settings = distill.DistillSettings(output=built / "none", steps=steps, guidance=1.0)
    states, conditioning = distill._follow(denoiser, prompts("train", 2), 0, settings)
    assert states.shape == (2, steps + 1, 4, 16, 16)
    assert torch.equal(states[:, 0], draw_noise([0, 1], (4, 16, 16)))
    ends = sample_latents(denoiser, states[:, 0], conditioning, 10, 1.0)
    torch.testing.assert_close(states[:, -1], ends, rtol=0, atol=1e-5)
    for found, target in distill._steps(denoiser, states, conditioning, steps):
        # an exact teacher is its own student; divided by alpha_T = 0.07, rounding grows to 1e-4
        torch.testing.assert_close(target, found, rtol=0, atol=1e-3)


def test_student_comes_closer_to_the_teacher(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--prompts",
        "shapes:train:8:500000",
        "--trajectories",
        "8",
        "--train-steps",
        "30",
        "--learning-rate",
        "0.002",
    ]
    output = tmp_path / "few-step"
    assert distill.main(["--model", str(built), "--output", str(output), *options]) == 0
    teacher, student = (Denoiser(load_pipeline(str(path))[0]) for path in (built, output))
    settings = distill.DistillSettings(output=output, guidance=3.0)
    states, conditioning = distill._follow(teacher, prompts("train", 8, 500_000), 500_000, settings)

    def distance(denoiser: Denoiser) -> float:
        with torch.no_grad():
            found = sample_latents(denoiser, states[:, 0], Conditioning(conditioning.positive), 2, 1.0)
        return float((found - states[:, -1]).square().mean())

    assert distance(student) < 0.8 * distance(teacher)
    assert distill.main(["--model", str(built), "--output", str(output), *options]) == 2
    assert "exists" in capsys.readouterr().err
    assert distill.main(["--output", "x", "--steps", "3"]) == 2
    assert "must be a multiple" in capsys.readouterr().err
