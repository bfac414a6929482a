"""The whole command on a small model, and what it refuses."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from npnet_export.cli import main as npnet_export
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.files import sha256
from npnet_training.demo import DemoSettings, checks, demonstrate
from npnet_training.demo.cli import main
from npnet_training.demo.summary import STRICT
from npnet_training.demo.worlds import WORLDS
from npnet_training.embedded import SCENES, SHAPES, AssetsError, EmbeddedModel
from npnet_training.errors import DemoError
from npnet_training.sampling import draw_noise
from npnet_training.shapes.grammar import Facts, prompts
from npnet_training.shapes.verify import verify
from support.damage import alter

COUNT = 5
QUICK = ["--steps", "2", "--batch", "3", "--pictures", "3", "--resamples", "200", "--engine", "torch"]


def of_shapes(model: Path, output: Path, *options: str) -> list[str]:
    """Options of a demo of the first world."""
    return ["--world", "shapes", "--model-dir", str(model), "--output", str(output), *options]


@pytest.fixture(scope="module")
def ran(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and printed text of a demo with both denoisers and all arms."""
    output = tmp_path_factory.mktemp("demo") / "out"
    options = of_shapes(model, output, "--prompts", str(COUNT), *QUICK)
    with pytest.MonkeyPatch.context() as patch:
        printed = io.StringIO()
        patch.setattr("sys.stdout", printed)
        patch.setenv("COLUMNS", "100")
        assert main([*options, "--model", "both", "--compare", "best-of-2"]) == 0
    return output, printed.getvalue()


@pytest.fixture
def results(ran: tuple[Path, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ran[0] / checks.RESULTS).read_text())
    return found


def test_folder(ran: tuple[Path, str]) -> None:
    names = {path.name for path in ran[0].iterdir()}
    assert names == {"engine", "gallery.html", "grid-main.png", "grid-weak.png", checks.RESULTS}
    assert [path.name for path in ran[0].parent.iterdir()] == ["out"]


def test_results_name_what_made_them(ran: tuple[Path, str], results: dict[str, Any], model: Path) -> None:
    listing = json.loads((model / "assets.json").read_text())
    assert results["model"] == {"folder": "model", "licence": "Apache-2.0", "files": len(listing["files"])}
    weights = listing["files"]["golden/prompt-attention.safetensors"]["sha256"]
    assert results["weights"]["sha256"] == weights
    bundle = EngineBundle.open(ran[0] / "engine")
    assert results["engine"]["digest"] == bundle.digest
    assert bundle.manifest.weights["sha256"] == weights
    assert str(model.parent) not in (ran[0] / checks.RESULTS).read_text()


def test_every_pair_shares_prompt_and_seed(results: dict[str, Any]) -> None:
    rows = {
        (denoiser, noise): [
            row for row in results["images"] if (row["denoiser"], row["noise"]) == (denoiser, noise)
        ]
        for denoiser in ("main", "weak")
        for noise in ("plain", "golden", "best-of-2")
    }
    assert sum(map(len, rows.values())) == len(results["images"]) == 6 * COUNT
    for (_, noise), of_arm in rows.items():
        assert [row["prompt"] for row in of_arm] == prompts("held-out", COUNT)
        if noise != "best-of-2":
            assert [row["seed"] for row in of_arm] == [2_000_000 + number for number in range(COUNT)]


def test_summary_is_that_of_the_images(results: dict[str, Any]) -> None:
    """Recomputed from the facts of each image, by other means."""
    for denoiser, entry in results["denoisers"].items():
        score: dict[str, list[float]] = {}
        for noise, found in entry["arms"].items():
            rows = [r for r in results["images"] if (r["denoiser"], r["noise"]) == (denoiser, noise)]
            score[noise] = [float(all(row["facts"].values())) for row in rows]
            assert found[STRICT]["rate"] == pytest.approx(np.mean(score[noise]))
            counts = [
                np.mean([v for name, v in row["facts"].items() if "things" in name or "extra" in name])
                for row in rows
            ]
            assert found["count"]["rate"] == pytest.approx(np.mean(counts))
            if noise != "plain":
                won = sum(a > b for a, b in zip(score[noise], score["plain"], strict=True))
                assert found[STRICT]["wins"] == won
                assert found[STRICT]["pairs"] == COUNT


def test_printed_table_is_that_of_the_results(ran: tuple[Path, str], results: dict[str, Any]) -> None:
    printed = ran[1]
    assert "licence Apache-2.0" in printed
    assert "checked" in printed
    for denoiser, entry in results["denoisers"].items():
        for noise, found in entry["arms"].items():
            line = next(x for x in printed.splitlines() if x.split()[:2] == [denoiser, noise])
            assert f"{100 * found[STRICT]['rate']:.1f} %" in line
            if noise != "plain":
                strict = found[STRICT]
                assert f"{strict['wins']}/{strict['ties']}/{strict['losses']}" in line
        for kind in ("count", "colour", "shape", "relation"):
            line = next(x for x in printed.splitlines() if x.split()[:2] == [denoiser, kind])
            plain, golden = (100 * entry["arms"][noise][kind]["rate"] for noise in ("plain", "golden"))
            assert line.split()[2:7:2] == [f"{plain:.1f}", f"{golden:.1f}", f"{golden - plain:+.1f}"]
        for found in entry["time"].values():
            assert 0 < found["share_of_denoising"] == found["golden_ms"] / found["denoising_ms"]
            assert f"{100 * found['share_of_denoising']:.1f} % of the time of denoising" in printed


def test_gallery_holds_the_images_that_were_judged(ran: tuple[Path, str], results: dict[str, Any]) -> None:
    page = (ran[0] / "gallery.html").read_text()
    assert "http" not in page
    shown = re.findall(r'base64,([^"]+)" alt="(\S+) noise, seed (\d+)">\s*<span class="(\w+)"', page)
    assert len(shown) == len(results["images"])
    expected = sorted((r["noise"], r["seed"], r["strict"], json.dumps(r["facts"])) for r in results["images"])
    found = []
    for data, noise, seed, mark in shown:
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        pixels = np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
        prompt = next(r["prompt"] for r in results["images"] if r["seed"] == int(seed))
        verdict = verify(pixels, Facts.parse(prompt))
        assert (mark == "right") == verdict.strict
        found.append((noise, int(seed), verdict.strict, json.dumps(verdict.facts)))
    assert sorted(found) == expected


def test_bundled_model_draws_what_an_attached_pipeline_draws(tmp_path: Path) -> None:
    """The golden image is the one a user gets from `golden.attach(pipe)`, the plain one from the pipeline."""
    settings = DemoSettings(
        output=tmp_path / "out", world="shapes", prompts=("a red circle above a blue cross",), steps=4,
        engine="torch", resamples=100,
    )  # fmt: skip
    demonstration = demonstrate(settings)
    assert demonstration.results["model"]["folder"] == "shapes, bundled"
    drawn = demonstration.drawn["main"]
    pipe = SHAPES.load()
    pipe.set_progress_bar_config(disable=True)
    noise = draw_noise([settings.seed], (4, 16, 16))
    golden = GoldenNoise(settings.output / "engine", device="cpu")
    assert golden.bundle.manifest.weights["package"] == "npnet_training"
    call: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "np"}
    images = {"plain": pipe(settings.prompts[0], latents=noise, **call).images[0]}
    golden.attach(pipe)
    images["golden"] = pipe(settings.prompts[0], latents=noise, **call).images[0]
    for arm, image in images.items():
        assert np.abs(np.asarray(drawn[arm][0].image) / 255 - image).max() < 1.1 / 255
    assert np.abs(images["plain"] - images["golden"]).max() > 5 / 255


def test_grid(ran: tuple[Path, str]) -> None:
    """Each cell is the image of the gallery, larger; the mark in its corner tells right from wrong."""
    from npnet_training.demo.pictures import CAPTION_LINES, GAP, LINE, MARGIN, MARK, SIDE, WRONG

    page = (ran[0] / "gallery.html").read_text()
    first = re.findall(r'base64,([^"]+)" alt="(\w+) noise, seed 2000000"', page)
    sheet = np.asarray(Image.open(ran[0] / "grid-main.png"))
    for row, noise in enumerate(("plain", "golden")):
        data = next(data for data, name in first if name == noise)
        small = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        top = GAP + CAPTION_LINES * LINE + row * (SIDE + GAP)
        cell = sheet[top : top + SIDE, MARGIN : MARGIN + SIDE]
        shown = cell.copy()
        expected = small.repeat(SIDE // 32, 0).repeat(SIDE // 32, 1)
        shown[-MARK:, -MARK:] = expected[-MARK:, -MARK:]
        assert (shown == expected).all()
        assert tuple(cell[-1, -1]) == tuple(bytes.fromhex(WRONG[1:]))  # untrained: none is right


def test_onnxruntime_and_the_papers_network(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = of_shapes(model, output, "--prompts", "2", "--steps", "1")
    assert main([*options, "--network", "npnet", "--resamples", "100"]) == 0
    found = json.loads((output / checks.RESULTS).read_text())
    assert found["weights"]["kind"] == "npnet"
    assert found["engine"]["kind"] == "onnxruntime"
    assert 0 < found["engine"]["differs_by"] <= 5e-5
    assert npnet_export(["verify", str(output / "engine"), "--samples", "2", "--device", "cpu"]) == 0


REFUSED = {
    "outside the grammar": (["--prompts", "a cat on a mat"], "expected 'a COLOUR SHAPE"),
    "unknown colour": (["--prompts", "a pink circle"], r"red, green, blue.*'a pink circle'"),
    "none": (["--prompts", "0"], "expected 1 to"),
    "too many": (["--prompts", "1000000000"], "expected 1 to"),
    "below none": (["--prompts", "-3"], "expected 1 to 20000 held-out prompts, in digits, given -3"),
    "a fraction": (["--prompts", "3.5"], "in digits, given 3.5"),
    "a sign": (["--prompts", "+5"], r"in digits, given \+5"),
    "no number": (["--prompts", "nan"], "in digits, given nan"),
    "very many": (["--prompts", "9" * 5000], "in digits, given 99"),
    "a comma": (["--prompts", "a red circle, a blue square"], "given 'a red circle, a blue square', with"),
    "one of two": (["--prompts", "a red circle", "--prompts", "b, c"], "given 'b, c', with"),
    "going back": (["--prompts", "a red circle above a blue cross below a cyan square"], "'above' and then"),
    "empty": (["--prompts", ""], "given '', with 0 words"),
    "no such file": (["--prompts", "nowhere.txt"], "expected a file of prompts"),
    "engine": (["--engine", "tensorrt"], "--engine"),
    "no model": (["--model-dir", "nowhere"], "nowhere: expected the embedded model"),
    "steps": (["--steps", "0"], "--steps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, says = REFUSED[name]
    defaults = of_shapes(model, tmp_path / "out", *QUICK)
    assert main([*defaults, *options]) == 2
    assert re.search(says, capsys.readouterr().err.replace("\n", " "))
    assert not list(tmp_path.iterdir())


def test_a_file_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\nA RED circle\n\na blue cross below a cyan square\n")
    found = checks.read_texts((str(file), "a green triangle", "2"), WORLDS["shapes"])
    held_out = prompts("held-out", 2)
    assert found == [
        "a red circle", "a blue cross below a cyan square", "a green triangle", *held_out,
    ]  # fmt: skip
    file.write_text("a red circle\na dog\n")
    with pytest.raises(checks.PromptsError, match=r"prompts.txt, prompt 2: expected 'a COLOUR SHAPE"):
        checks.read_texts((str(file),), WORLDS["shapes"])
    file.write_text("\n")
    with pytest.raises(checks.PromptsError, match="found none"):
        checks.read_texts((str(file),), WORLDS["shapes"])


@pytest.mark.parametrize("damage", ["altered", "missing", "unlisted"])
def test_weights_are_checked(
    damage: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    weights = folder / "golden" / "prompt-attention.safetensors"
    if damage == "altered":
        alter(weights)
    elif damage == "missing":
        weights.unlink()
    else:
        weights.unlink()
        SHAPES.write_manifest(folder)
    options = of_shapes(folder, tmp_path / "out", "--prompts", "2", *QUICK)
    assert main(options) == 2
    says = {
        "altered": "was altered",
        "missing": "No such file",
        "unlisted": "expected the golden-noise weights",
    }
    said = capsys.readouterr().err
    assert says[damage] in said
    assert "pip install" not in said
    assert damage == "unlisted" or f"write_manifest(Path('{folder}'))" in said
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_altered_bundled_model(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    alter(folder / "golden" / "npnet.safetensors")
    monkeypatch.setattr(EmbeddedModel, "folder", folder)
    with pytest.raises(AssetsError, match=r"was altered.*reinstall with pip install"):
        SHAPES.check(folder)


def test_the_weak_denoiser_must_be_there(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    shutil.rmtree(folder / "unet-weak")
    SHAPES.write_manifest(folder)
    options = of_shapes(folder, tmp_path / "out", "--prompts", "1", *QUICK)
    assert main([*options, "--model", "weak"]) == 2
    assert "lists no unet-weak" in capsys.readouterr().err


@pytest.mark.parametrize("model", [SHAPES, SCENES], ids=lambda model: model.name)
def test_no_network_and_the_bundled_files_stay(
    model: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("no network")

    for owner, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, refuse)
    for library in ("huggingface_hub.constants", "diffusers.utils.constants"):
        monkeypatch.setattr(f"{library}.HF_HUB_OFFLINE", False, raising=False)

    def state() -> dict[Path, tuple[int, int, str]]:
        paths = [path for path in model.folder.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mode, path.stat().st_mtime_ns, sha256(path)) for path in paths}

    before = state()
    options = ["--output", str(tmp_path / "out"), "--prompts", "1", "--model", "both", "--steps", "1"]
    assert main([*options, "--world", model.name, "--resamples", "100"]) == 0
    assert state() == before
    assert not asked


def test_folders(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--world", "shapes", "--model-dir", str(model), "--prompts", "1", *QUICK]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for output, says in {
        "file": "found a file",
        "full": "found other files",
        "file/below": "cannot be written",
        "x" * 300: "cannot be written",
    }.items():
        for force in ([], ["--force"]):
            assert main([*options, *force, "--output", str(tmp_path / output)]) == 2
            assert says in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "thesis.tex"]


def test_an_output_that_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="cannot be written .*null"):
        demonstrate(DemoSettings(output=tmp_path / "a\0b"))


def test_an_earlier_demo_is_replaced_only_with_force(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = tmp_path / "out" / checks.RESULTS
    earlier.parent.mkdir()
    earlier.write_text("{}")
    options = [
        "--world",
        "shapes",
        "--model-dir",
        str(model),
        "--prompts",
        "1",
        "--output",
        str(earlier.parent),
        *QUICK,
    ]
    assert main(options) == 2
    assert "replace it with --force" in capsys.readouterr().err
    assert earlier.read_text() == "{}"
    assert main([*options, "--force"]) == 0
    assert json.loads(earlier.read_text())["pairs"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("module", "engine", "ways"),
    [("onnxscript", "onnxruntime", "--engine torch"), ("diffusers", "torch", "npnet-runtime[demo]")],
)
def test_a_missing_module(
    module: str, engine: str, ways: str, model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found = checks.find_spec
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == module else found(name))
    options = of_shapes(model, tmp_path / "out", "--prompts", "1")
    assert main([*options, "--engine", engine]) == 2
    error = capsys.readouterr().err
    assert module in error
    assert ways in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(
    number: signal.Signals,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupt(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr("npnet_training.demo.drawing.sample_images", interrupt)
    options = of_shapes(model, tmp_path / "out", "--prompts", "1", *QUICK)
    before = signal.getsignal(signal.SIGTERM)
    assert main(options) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_settings_are_documented() -> None:
    assert all(field.description for field in DemoSettings.model_fields.values())
