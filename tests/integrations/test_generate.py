"""The command `npnet-generate`, as a user meets it, with a small SDXL in a folder."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from npnet_export import ExportSettings, export
from npnet_export.for_pipeline import config_for
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.generate import cli
from npnet_runtime.generate.cli import main
from npnet_runtime.generate.settings import ImageSettings, parse_seeds
from support.flow_pipelines import FLOWS, OPTIONS, SIZE
from support.pipelines import sdxl as make_sdxl

Command = Callable[..., int]


def score(image: Image.Image, prompt: str) -> float:
    """A scorer: found as `test_generate:score`."""
    return float(np.asarray(image).mean()) + len(prompt)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "sdxl"
    make_sdxl().save_pretrained(folder)
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "gallery"


@pytest.fixture
def command(model: Path, text_bundle: EngineBundle, output: Path) -> Command:
    def run(*more: str, prompt: str = "a red cat") -> int:
        fixed = ["--model", model, "--engine", text_bundle.path, "--output", output, "--steps", "2"]
        return main([*map(str, fixed), "--device", "cpu", "--quiet", "--prompt", prompt, *more])

    return run


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_compares(
    command: Command, output: Path, text_bundle: EngineBundle, sdxl: Any, run: Callable
) -> None:
    assert command("--seeds", "7-8", "--compare") == 0
    golden = GoldenNoise(text_bundle, device="cpu")
    expected = {"plain": run(sdxl, seed=7)}
    golden.attach(sdxl)
    expected["golden"] = run(sdxl, seed=7)
    for kind, images in expected.items():
        given = np.asarray(Image.open(output / ImageSettings("a red cat", 7, kind).filename))
        assert np.array_equal(given, (images[0] * 255).round().astype("uint8"))
    settings = json.loads((output / "settings.json").read_text())
    assert settings["engine_digest"] == text_bundle.digest
    assert settings["seeds"] == [7, 8]


def test_quiet_is_quiet(command: Command, capfd: pytest.CaptureFixture[str]) -> None:
    """Also of the bars that libraries draw while they load."""
    import huggingface_hub.utils as hub

    libraries = [importlib.import_module(f"{name}.utils.logging") for name in ("diffusers", "transformers")]
    for library in libraries:
        library.enable_progress_bar()
    hub.enable_progress_bars()
    capfd.readouterr()
    assert command("--seeds", "7") == 0
    given = capfd.readouterr()
    assert given.out == given.err == ""
    assert hub.are_progress_bars_disabled()


@pytest.mark.parametrize("strength", ["0", "0.5"])
def test_strength(command: Command, output: Path, strength: str) -> None:
    assert command("--seeds", "7", "--compare", "--strength", strength) == 0
    plain, golden = (
        Image.open(output / ImageSettings("a red cat", 7, kind).filename).tobytes()
        for kind in ("plain", "golden")
    )
    assert (plain == golden) == (strength == "0")
    assert json.loads((output / "settings.json").read_text())["strength"] == float(strength)
    with pytest.raises(SystemExit):
        command("--strength", "1.5")


def test_gallery_needs_nothing_else(command: Command, output: Path) -> None:
    prompt = "a <script>alert(1)</script> & $prompts {x} 'cat'"
    assert command("--seeds", "0,1", "--compare", prompt=prompt) == 0
    page = Page((output / "gallery.html").read_text(encoding="utf-8"))
    assert prompt in page.text
    assert page.tags.count("script") == 1
    assert page.tags.count("img") == 4
    assert page.tags.count("input") == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "seed 1" in page.text
    assert re.search(r"golden \d+\.\d\d s", page.text)


def test_golden_alone(command: Command, output: Path) -> None:
    assert command("--seeds", "0-4") == 0
    assert len(list(output.glob("*-golden.png"))) == 5
    assert not list(output.glob("*-plain.png"))
    assert "input" not in Page((output / "gallery.html").read_text(encoding="utf-8")).tags


@pytest.mark.parametrize("compare", [True, False])
def test_grid(command: Command, output: Path, compare: bool) -> None:
    """Every image stands in it, none over another."""
    assert command("--seeds", "0-4", *["--compare"] * compare, "--prompt", "two dogs") == 0
    rows, columns = (10, 2) if compare else (4, 4)
    with Image.open(output / "grid.png") as grid:
        assert grid.width >= columns * 256
        assert rows * 256 <= grid.height <= rows * (256 + 40) + 120


def test_resumes(command: Command, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("--seeds", "0-1", "--compare") == 0
    images = {path: path.stat().st_mtime_ns for path in output.glob("*-*.png")}
    lost, broken = sorted(images)[:2]
    lost.unlink()
    broken.write_bytes(broken.read_bytes()[:500])
    assert command("--seeds", "0-2", "--compare", "--prompt", "two dogs") == 0
    again = {path: path.stat().st_mtime_ns for path in output.glob("*-*.png")}
    assert len(again) == 12
    assert all(again[path] == time for path, time in images.items() if path not in (lost, broken))
    Image.open(broken).load()

    monkeypatch.setattr(cli, "load_pipeline", lambda *_: pytest.fail("nothing to make"))
    assert command("--seeds", "0-2", "--compare", "--prompt", "two dogs") == 0


def test_interrupted(
    command: Command, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = GoldenNoise.attach, []

    def attach(self: GoldenNoise, pipe: object) -> None:
        calls.append(pipe)
        if len(calls) == 4:  # one of them to warm up
            raise KeyboardInterrupt
        original(self, pipe)

    with monkeypatch.context() as patch:
        patch.setattr(GoldenNoise, "attach", attach)
        assert command("--seeds", "0-3") == 130
    assert "run it again to go on" in capsys.readouterr().err
    assert len(list(output.glob("*-golden.png"))) == 2
    assert not list(output.glob("*.tmp"))
    assert command("--seeds", "0-3") == 0
    assert len(list(output.glob("*-golden.png"))) == 4


def test_scorer(command: Command, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert command("--compare", "--scorer", "test_generate:score") == 0
    assert ", score " in Page((output / "gallery.html").read_text(encoding="utf-8")).text
    with Image.open(next(output.glob("*-golden.png"))) as image:
        note = json.loads(image.text["npnet"])  # type: ignore[attr-defined]
        assert note["score"] == score(image, "a red cat")


def test_other_sizes(command: Command, output: Path) -> None:
    assert command("--height", "48", "--width", "40", "--other-sizes", "transfer") == 0
    assert Image.open(next(output.glob("*-golden.png"))).size == (40, 48)


def test_progress(
    model: Path, text_bundle: EngineBundle, output: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--model", model, "--engine", text_bundle.path, "--output", output, "--device", "cpu"]
    assert main([*map(str, arguments), "--steps", "1", "--prompt", "a", "--seeds", "0-1"]) == 0
    written = capsys.readouterr()
    assert written.out == ""
    assert "2/2" in written.err
    assert f"2 images: {output / 'gallery.html'}" in written.err


class TestErrors:
    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (["--height", "48"], "height|4, 16, 16.*GoldenNoise"),
            (
                ["--model", "no/where", "--offline"],
                "expected the folder, the hub id or .*'no/where'",
            ),
            (["--engine", "nowhere"], "expected the folder of an engine bundle, found nothing"),
            (["--scorer", "nowhere:f"], "expected module:function"),
            (["--scorer", "math:nothing"], "expected module:function"),
            (["--scorer", "math"], "expected module:function"),
            (
                ["--scorer", "math:hypot"],
                "scorer: expected a number for an image and its prompt, given TypeError",
            ),
            (["--device", "tpu"], "expected cpu, cuda"),
        ],
        ids=lambda value: value[-1] if isinstance(value, list) else "",
    )
    def test_fails(
        self, command: Command, output: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
    ) -> None:
        assert command(*more) == 1
        error = capsys.readouterr().err
        assert re.search(f"^npnet-generate: .*({said})", error, re.MULTILINE | re.DOTALL)
        assert "Traceback" not in error
        assert not list(output.glob("*.png"))

    @pytest.mark.parametrize(
        "more",
        [["--seeds", "7-0"], ["--seeds", "a"], ["--seeds", ""], ["--steps", "0"], ["--guidance", "nan"]],
        ids=str,
    )
    def test_usage(self, command: Command, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            command(*more)
        assert f"argument {more[0]}: expected" in capsys.readouterr().err

    def test_other_settings(self, command: Command, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert command() == 0
        image = next(output.glob("*-golden.png"))
        before = image.read_bytes()
        assert command("--guidance", "3") == 1
        assert "holds images made with other settings" in capsys.readouterr().err
        assert image.read_bytes() == before

    def test_output_of_another_kind(
        self, command: Command, output: Path, capsys: pytest.CaptureFixture
    ) -> None:
        output.mkdir()
        (output / "thesis.tex").write_text("all of it")
        assert command() == 1
        assert "found neither" in capsys.readouterr().err
        (output / "settings.json").write_text("{}")
        assert command() == 1
        assert "cannot be read" in capsys.readouterr().err
        assert {path.name for path in output.iterdir()} == {"thesis.tex", "settings.json"}


def test_seeds() -> None:
    assert parse_seeds("0-3") == (0, 1, 2, 3)
    assert parse_seeds("9, 1-2,2") == (9, 1, 2)
    for wrong in ("", "-1", "1-", "3-1", "0x1", f"{2**63}", "0-999999"):
        with pytest.raises(ValueError, match="expected"):
            parse_seeds(wrong)
    assert parse_seeds(f"{2**63 - 1}") == (2**63 - 1,)
    with pytest.raises(
        ValueError, match=r"at most 2\^63 - 1 = 9223372036854775807, given '9223372036854775808'"
    ):
        parse_seeds(f"{2**63}")


def test_filenames_tell_prompts_apart() -> None:
    names = {ImageSettings(prompt, 0, "plain").filename for prompt in ("a/b", "a b", "猫", "犬", "x" * 300)}
    assert len(names) == 5
    assert all(re.fullmatch(r"[a-z0-9-]+\.png", name) and len(name) < 80 for name in names)


@pytest.mark.parametrize(
    "mistake", [("--model", "nope/absent", "--offline"), ("--scorer", "os:nope"), ("--height", "9")]
)
def test_a_run_that_fails_leaves_its_output_free(
    command: Command, output: Path, capsys: pytest.CaptureFixture[str], mistake: tuple[str, ...]
) -> None:
    assert command(*mistake) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert not output.exists()
    assert command() == 0


def test_prompt_that_is_no_text(command: Command, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(prompt="a \udcff b")
    assert stopped.value.code == 2
    assert "expected text in UTF-8" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("name", ["qwen-image", "z-image"])
def test_other_families(name: str, tmp_path: Path) -> None:
    """Packed latents, and embeddings in a list."""
    pipe = FLOWS[name]()
    pipe.save_pretrained(tmp_path / "model")
    config, reads = config_for(pipe, height=SIZE, width=SIZE, **OPTIONS[name])
    weights = WeightsRequest(None, random_seed=0, shapes=config, reads=reads)
    export(ExportSettings(weights, tmp_path / "engine", name, "torch", device="cpu"))
    options = ["--height", SIZE, "--width", SIZE, "--steps", 2, "--compare", "--dtype", "fp32"]
    folders = ["--model", tmp_path / "model", "--engine", tmp_path / "engine", "--output", tmp_path / "made"]
    given = [*folders, *options, "--prompt", "a red cat", "--device", "cpu", "--quiet"]
    assert main([str(option) for option in given]) == 0
    images = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "made").rglob("*.png")}
    plain, golden = (next(i for name, i in images.items() if kind in name) for kind in ("plain", "golden"))
    assert plain.shape == golden.shape == (SIZE, SIZE, 3)
    assert not np.array_equal(plain, golden)
