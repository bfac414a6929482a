import errno
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from npnet_export import ExportSettings, export
from npnet_export.weights import WeightsRequest
from npnet_runtime.networks.prompt_attention import PromptAttentionConfig
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.weights import checkpoint
from npnet_training.errors import EvaluateError, ModelError, ScorerError, SettingsError
from npnet_training.evaluation import Arm, EvaluateSettings, Evaluator, Results, evaluate, features
from npnet_training.evaluation import arms as arms_module
from npnet_training.evaluation import evaluator as evaluator_module
from npnet_training.evaluation.cli import main
from npnet_training.evaluation.report import write_report
from npnet_training.evaluation.results import FILE
from npnet_training.prompts import Prompt
from npnet_training.sampling import Denoiser
from npnet_training.scorers.registry import BUILT_IN
from support.pipelines import PIPELINES

QUICK: dict[str, Any] = {
    "redenoise": {"steps": 4}, "sample": {"steps": 2, "guidance": 1.0}, "batch": 4, "resamples": 200,
}  # fmt: skip


class Brightness:
    """A scorer that needs no weights: how bright the image is, and nothing for one that is all black."""

    def __init__(self, **_: object) -> None:
        pass

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
        return [float(np.asarray(image, float).mean()) for image in images]


@pytest.fixture(autouse=True)
def _brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    from npnet_training.scorers import load_scorer

    def load(name: str, **options: Any) -> Any:
        return Brightness() if name == "brightness" else load_scorer(name, **options)

    for module in (arms_module, evaluator_module):
        monkeypatch.setattr(module, "load_scorer", load)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "sdxl"
    torch.manual_seed(0)
    PIPELINES["sdxl"]().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def engine(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from npnet_training.models import load_pipeline

    denoiser = Denoiser(load_pipeline(model)[0])
    config = PromptAttentionConfig(*denoiser.latent_shape, *denoiser.text_shape, channels=(8, 16))
    folder = tmp_path_factory.mktemp("engine")
    checkpoint.write(folder / "weights.safetensors", random_state(config, 0), config)
    weights = WeightsRequest(None, str(folder / "weights.safetensors"))
    return export(ExportSettings(weights, folder / "engine", "own", "torch", device="cpu")).path


@pytest.fixture
def settings(model: str, engine: Path, tmp_path: Path) -> EvaluateSettings:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"prompt {letter}", "tag": "odd" if letter in "ac" else "even"} for letter in "abcda"]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    return EvaluateSettings(
        model=model, prompts=str(prompts), output=tmp_path / "out", seeds=2, scorers=("brightness",),
        arms=("redenoised", f"golden:{engine}", "best-of-3:brightness"), pictures=1, **QUICK,
    )  # fmt: skip


def with_(settings: EvaluateSettings, **changes: Any) -> EvaluateSettings:
    return EvaluateSettings.model_validate({**settings.model_dump(), **changes})


def test_arms_on_the_same_seeds(settings: EvaluateSettings) -> None:
    nothing = Arm("nothing", lambda noise, prompts: noise.clone())
    results = evaluate(settings, [nothing])
    assert [row["prompt"][-1] for row in results.rows] == list("aabbccdd")  # the repeated prompt counts once
    assert [row["seed"] for row in results.rows] == list(range(1_000_000, 1_000_008))
    same = results.compare("nothing", "brightness", resamples=100)
    assert (same.difference, same.ties) == (0, 8)
    best = results.compare("best-of-3:brightness", "brightness", resamples=100)
    assert best.losses == 0
    assert best.wins > 0
    golden = next(name for name in results.arms if name.startswith("golden"))
    for name in ("redenoised", golden):
        assert results.compare(name, "brightness", resamples=100).ties < 8
        assert min(results.arms[name]["noise"]["change"]) > 0
    assert max(results.arms["nothing"]["noise"]["change"]) == 0
    assert results.categories == ["odd", "even"]
    diversity = results.arms["plain"]["diversity"]
    assert diversity.shape == (4,)
    assert (diversity > 0).all()


def test_report(settings: EvaluateSettings) -> None:
    results = evaluate(settings)
    summary = write_report(results, settings.output, resamples=200)
    assert json.loads((settings.output / "results.json").read_text()) == summary
    scores = summary["results"]["redenoised"]["scores"]["brightness"]
    plain = results.arms["plain"]["scores"]["brightness"]
    other = results.arms["redenoised"]["scores"]["brightness"]
    assert scores["mean"] == pytest.approx(other.mean())
    assert scores["difference"] == pytest.approx((other - plain).mean())
    assert scores["wins"] == (other > plain).sum()
    text = (settings.output / "report.md").read_text()
    for part in (
        "Against plain noise",
        "As in the paper",
        "By kind of prompt",
        "Diversity",
        "3x",
        "redenoised",
    ):
        assert part in text
    page = (settings.output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "prompt a" in page


def test_a_stopped_evaluation_goes_on(settings: EvaluateSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(with_(settings, output=settings.output.parent / "whole"))
    make, calls = Evaluator.make, []

    def failing(self: Evaluator, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make(self, *arguments)

    monkeypatch.setattr(Evaluator, "make", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings)
    with pytest.raises(EvaluateError, match="go on with --resume"):
        evaluate(settings)
    with pytest.raises(EvaluateError, match=r"other settings:\n  seeds: expected 2, given 1"):
        evaluate(with_(settings, resume=True, seeds=1))
    again = evaluate(with_(settings, resume=True))
    assert len(calls) == 3  # the first batch was not made again
    for name, arm in whole.arms.items():
        np.testing.assert_array_equal(arm["scores"]["brightness"], again.arms[name]["scores"]["brightness"])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (
            {"arms": ("gold",)},
            SettingsError,
            "expected golden:ENGINE_DIR, redenoised.:WEIGHT. or best-of-N:SCORER",
        ),
        ({"arms": ("best-of-1:brightness",)}, SettingsError, "2 or more"),
        ({"arms": ("best-of-2:beauty",)}, ScorerError, "unknown scorer 'beauty'"),
        ({"arms": ("golden:nowhere",)}, Exception, "expected the folder of an engine bundle"),
        ({"scorers": ("beauty",)}, ScorerError, "expected one of aesthetic"),
        ({"prompts": "nowhere.txt"}, Exception, "expected a file of prompts"),
    ],
)
def test_refused(settings: EvaluateSettings, change: dict[str, Any], error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        evaluate(with_(settings, **change))
    assert not settings.output.exists()


def test_folders_that_are_something_else(settings: EvaluateSettings) -> None:
    settings.output.mkdir()
    (settings.output / "thesis.tex").write_text("mine")
    with pytest.raises(EvaluateError, match="exists and is no evaluation"):
        evaluate(settings)
    with pytest.raises(EvaluateError, match="expected an evaluation"):
        Results.read(settings.output)


def test_a_damaged_batch(settings: EvaluateSettings) -> None:
    evaluate(settings)
    damaged = sorted((settings.output / "batches").glob("*.json"))[0]
    damaged.write_text(damaged.read_text()[:100])
    with pytest.raises(EvaluateError, match="is damaged"):
        evaluate(with_(settings, resume=True))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"settings": 3}', '{"settings": {}}'])
def test_a_damaged_record(settings: EvaluateSettings, text: str) -> None:
    settings.output.mkdir()
    (settings.output / FILE).write_text(text)
    with pytest.raises(EvaluateError, match=r"evaluation.json is damaged .*give another --output"):
        evaluate(with_(settings, resume=True))


def test_best_of_n_where_its_scorer_fails(
    settings: EvaluateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception at one prompt: its plain images stay. NaN for a plain image: another candidate."""
    monkeypatch.setitem(BUILT_IN, "moody", "support.scorers:Moody")
    arm = "best-of-3:moody"
    results = evaluate(with_(settings, arms=(arm,), batch=8))
    plain, best = (results.arms[name]["scores"]["brightness"] for name in ("plain", arm))
    failed = np.array([row["prompt"] == "prompt b" for row in results.rows])
    assert (best[failed] == plain[failed]).all()
    assert (best[~failed] != plain[~failed]).all()  # Moody likes no first image
    summary = write_report(results, settings.output, resamples=100)
    assert summary["results"][arm]["unjudged"] == failed.sum() == 2
    assert f"2 images of {arm} are plain ones" in (settings.output / "report.md").read_text()
    assert summary["results"]["plain"]["unjudged"] == 0


def test_a_full_disk(
    settings: EvaluateSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = with_(settings, arms=())
    config = settings.output.parent / "evaluate.yaml"
    config.write_text(settings.to_yaml())

    def half(image: Image.Image, path: Path, *_: object) -> None:
        Path(path).write_bytes(b"half a picture")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", half)
        assert main(["--config", str(config)]) == 2
    assert re.search(r"No space left .*; go on with --resume\n$", capsys.readouterr().err)
    assert not list((settings.output / "pictures").iterdir())
    assert main(["--config", str(config), "--resume"]) == 0
    (picture,) = (settings.output / "pictures").iterdir()
    assert Image.open(picture).format == "PNG"


def test_diversity_by_dino(
    settings: EvaluateSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cosine distance of the pooled output, as a Euclidean one, of DINOv2 with random weights."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder = tmp_path / "dino"
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = Dinov2Model(Dinov2Config(**sizes, image_size=28, patch_size=14)).eval()
    network.save_pretrained(folder)
    prepare = BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
    prepare.save_pretrained(folder)
    monkeypatch.setattr(features, "DINO", str(folder))

    settings = with_(settings, arms=(), seeds=3, batch=6, diversity="dino", offline=True)
    values, images = Evaluator(settings).make([Prompt("prompt a")] * 3 + [Prompt("prompt b")] * 3, 0)
    with torch.no_grad():
        pooled = network(**prepare(images["plain"], return_tensors="pt")).pooler_output.double()
    expected = []
    for of_prompt in (pooled[:3], pooled[3:]):
        cosines = [
            torch.cosine_similarity(of_prompt[a], of_prompt[b], 0) for a, b in ((0, 1), (0, 2), (1, 2))
        ]
        expected.append(float(sum((2 - 2 * cosine) ** 0.5 for cosine in cosines) / 3))
    assert values["arms"]["plain"]["diversity"] == pytest.approx(expected, rel=1e-3)
    assert min(expected) > 1e-3

    monkeypatch.setattr(features, "DINO", str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="--diversity dino needs .*give --diversity pixels"):
        features.load_features("dino", offline=True)


def test_command_line(settings: EvaluateSettings, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", settings.model, "--prompts", settings.prompts, "--output", str(settings.output)]
    options += [
        "--scorers",
        "brightness",
        "--arms",
        "redenoised",
        "--sample.steps",
        "2",
        "--sample.guidance",
        "1",
    ]
    options += ["--redenoise.steps", "4", "--resamples", "200"]
    assert main([*options, "--dry-run"]) == 0
    assert "4 images in each of the arms plain, redenoised" in capsys.readouterr().out
    assert not settings.output.exists()
    assert main(options) == 0
    assert "redenoised: brightness" in capsys.readouterr().out
    assert main(options) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*options, "--seeds", "3", "--batch", "4"]) == 2
    assert "multiple of seeds" in capsys.readouterr().err
