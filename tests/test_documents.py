"""The commands and examples of the README, then of those in `RUN`, are run in order, as a new user would.

A block whose fence says `norun` needs a network or a GPU; its Python must compile all the same. The Python of
other documents is run by `integrations/test_docs.py`, commands of training by
`training/test_documented_commands.py`.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from npnet_training.embedded import SCENES, SHAPES
from npnet_training.evaluation.statistics import in_points

ROOT = Path(__file__).parents[1]
RUN = ("README.md", "docs/engines.md", "docs/spectral.md")
LONGEST_README = 140  # lines; what is longer is not read to the end
MADE = ("build", "dist", "demo", "engines")  # by pip and by the documents' own commands
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in MADE for part in path.relative_to(ROOT).parts)
)
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
STUDY, SECOND_STUDY, SECOND_MORE, CHECKPOINTS = (
    json.loads((ROOT / "training" / "results" / f"{name}.json").read_text())
    for name in ("study", "scenes-study", "scenes-study-more", "scenes-checkpoints")
)
CONDITIONS_OF = {
    "main": ("base", "diversity"),
    "weaker": ("weaker model", "diversity of the weaker model"),
}
# What the suite stands on already, or is.
NOT_REPEATED = ("pip install", "pytest", "git ", "python -m venv", "source ", "ruff ", "mypy", "lint-imports")


def blocks(document: Path) -> list[tuple[str, str, str]]:
    return [(language, note.strip(), code) for language, note, code in FENCE.findall(document.read_text())]


def commands(code: str) -> list[str]:
    """Each command of a shell block, chains taken apart, without what is not repeated."""
    lines = re.sub(r"\\\n\s*", " ", code).splitlines()
    parts = [part.split("  #")[0].strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if part and not part.startswith(("#", *NOT_REPEATED))]


def test_readme_has_both_commands() -> None:
    first, second = [code for language, _, code in blocks(ROOT / "README.md") if language == "bash"][:2]
    assert "npnet-demo" in first
    assert second.strip().endswith("pytest")


def test_readme_is_read_to_the_end() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README


def test_run_documents(tmp_path: Path) -> None:
    """The blocks share a folder, as they would for a reader."""
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    environment_path = str(Path(sys.executable).parent)
    for language, note, code in (block for name in RUN for block in blocks(ROOT / name)):
        if note == "norun" or language not in ("bash", "python"):
            continue
        steps = [f"{c}" for c in commands(code)] if language == "bash" else [None]
        for step in steps:
            argv = ["bash", "-ec", f'PATH="{environment_path}:$PATH"; {step}']
            if step is None:
                argv = [sys.executable, "-c", code]
            result = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert result.returncode == 0, f"{step or code}\n{result.stdout}\n{result.stderr}"
    arms = json.loads((tmp_path / "demo" / "demo.json").read_text())["denoisers"]["main"]["arms"]
    assert 0.3 < arms["plain"]["strict"]["rate"] < 0.6
    assert arms["golden"]["strict"]["low"] > 0.05  # the bundled weights are worth what is said of them


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_compile(document: Path) -> None:
    for language, _, code in blocks(document):
        if language == "python":
            ast.parse(code)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target, _, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(#([^)]+))?\)", document.read_text()):
        path = document.parent / target if target else document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors, (target, anchor)


def test_the_map_names_what_is_there() -> None:
    """Every room of every package stands in CONTRIBUTING's map, and nothing else does."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## The map")[2].partition("## Rules")[0]
    sections = re.split(r"^\| \*\*`([^`]+)`\*\*.*$", text, flags=re.MULTILINE)[1:]
    for folder, rows in zip(sections[::2], sections[1::2], strict=True):
        if not folder.startswith(("kernels", "npnet", "export", "training")):
            continue
        found = re.findall(r"`([\w/.]+(?:/|\.py))`", rows)
        base = ROOT / folder
        for name in found:
            assert any(
                (base / room / name).exists() for room in ("", *(n for n in found if n.endswith("/")))
            ), name
        rooms = {path.name + "/" for path in base.iterdir() if (path / "__init__.py").exists()}
        assert rooms <= set(found), folder


def test_results_are_those_committed() -> None:
    """The README's ratios are those of the JSON that the benchmark wrote, for every engine in it."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "latency-sdxl-cpu.json").read_text())["rows"]
    assert all(row["parity"]["agrees"] for row in rows)
    ratios = {(row["engine"], row["batch"]): f"{row['speed_up']['end to end']:.2f}" for row in rows}
    text = (ROOT / "README.md").read_text()
    for engine in {engine for engine, _ in ratios}:
        found = re.search(
            rf"^\| {re.escape(engine)} \| \**([\d.]+)\** \| \**([\d.]+)\** \|", text, re.MULTILINE
        )
        assert found, engine
        assert found.groups() == (ratios[engine, 1], ratios[engine, 4]), engine


def test_the_study_is_of_what_is_bundled() -> None:
    listed = json.loads((SHAPES.folder / "assets.json").read_text())["files"]
    for name in ("npnet", "prompt-attention"):
        assert STUDY["networks"][name] == listed[f"golden/{name}.safetensors"]["sha256"]
    for condition in STUDY["conditions"].values():
        unet = {"shapes": "unet", "shapes-weak": "unet-weak"}.get(condition["model"])
        if unet is not None:
            weights = listed[f"{unet}/diffusion_pytorch_model.safetensors"]["sha256"]
            assert condition["denoiser"] == weights


@pytest.mark.parametrize("model", CONDITIONS_OF)
def test_the_study_meets_the_aim(model: str) -> None:
    """Ten points over plain noise, more than the better of two seeds, a tenth of variety lost at most."""
    base, diversity = (
        {row["arm"]: row for row in STUDY["conditions"][name]["rows"]} for name in CONDITIONS_OF[model]
    )
    golden, better = base["prompt-attention"], base["best-of-2:shapes"]
    assert golden["against_plain"]["low"] > 0.10
    assert golden["strict"] > better["strict"]
    assert golden["images_sampled"] < better["images_sampled"]
    assert diversity["prompt-attention"]["diversity"] > 0.9 * diversity["plain"]["diversity"]


def test_the_study_is_the_one_committed() -> None:
    """Every row of the table of the study stands in its JSON."""
    study = STUDY["conditions"]
    text = (ROOT / "training" / "README.md").read_text()
    found = re.findall(r"\| (main|weaker) \| .* \*\*([\d.]+) %\*\* \| (\S*).* \| ([\d.]*) \|", text)
    assert len(found) >= 8
    for model, share, points, variety in found:
        base, diversity = CONDITIONS_OF[model]
        varieties = {row["arm"]: f"{row['diversity']:.3f}" for row in study[diversity]["rows"]}
        assert any(
            f"{100 * row['strict']:.1f}" == share
            and points
            == (f"{100 * row['against_plain']['difference']:+.1f}" if row["arm"] != "plain" else "")
            and variety in ("", varieties.get(row["arm"]))
            for row in study[base]["rows"]
        ), (model, share, points, variety)


def test_the_readme_shows_rows_of_the_second_study() -> None:
    """Its shares stand in the tables of the second world, in the same words: both judges, both models."""
    table = (ROOT / "training" / "README.md").read_text()
    rows = re.findall(
        r"^\| \**([^|*]+?)\** \| (\dx)(( \| \**[\d.]+ %\**){4}) \|", (ROOT / "README.md").read_text(), re.M
    )
    assert len(rows) >= 5
    for noise, cost, shares, _ in rows:
        main, main_second, few, few_second = re.findall(r"[\d.]+", shares)
        for first, second in ((main, main_second), (few, few_second)):
            row = rf"^\| \**{re.escape(noise)}\** \| {cost} \| {first} % \| [^|]*\| {second} % "
            assert re.search(row, table, re.MULTILINE), (noise, first, second)


def test_the_readme_says_what_the_first_study_found() -> None:
    """From plain to golden, of the main model and the weaker one."""
    text = " ".join((ROOT / "README.md").read_text().split())
    for name, sentence in (
        ("base", "the main model from {} to {} %"),
        ("weaker model", "a weaker one from {} to {} %"),
    ):
        rows = {row["arm"]: row for row in STUDY["conditions"][name]["rows"]}
        shares = (f"{100 * rows[arm]['strict']:.1f}" for arm in ("plain", "prompt-attention"))
        assert sentence.format(*shares) in text


def of_rows(rows: list[dict[str, Any]], arm: str) -> tuple[str, ...]:
    """What a table says of an arm, in the words of the documents."""
    row = next(row for row in rows if row["arm"] == arm)
    found = []
    for share, of in ((row["strict"], row), (row["second_judge"]["strict"], row["second_judge"])):
        against = of.get("against_plain")
        found += [f"{100 * share:.1f} %", in_points(against) if against else ""]
    return tuple(found)


def test_the_second_study_is_the_one_committed() -> None:
    """Every row of its two tables stands in its JSON, and what golden noise adds elsewhere in theirs."""
    studied = [SECOND_STUDY["conditions"][name]["rows"] for name in ("base", "few-step model")]
    text = (ROOT / "training" / "README.md").read_text()
    found = re.findall(
        r"^\| \**([^|*]+?)\** \| \dx \| ([^|]*) \| ([^|]*)\| ([^|]*) \| ([^|]*)\|$", text, re.MULTILINE
    )
    known = {of_rows(rows, row["arm"]) for rows in studied for row in rows}
    said = {tuple(part.strip() for part in parts) for _, *parts in found}
    assert len(said) >= 16
    assert said <= known
    for condition in SECOND_MORE["conditions"].values():
        plain, golden = (of_rows(condition["rows"], arm) for arm in ("plain", "prompt-attention"))
        assert f"| {plain[0]} | {golden[1]} | {plain[2]} | {golden[3]} |" in text
    for row in CHECKPOINTS["rows"]:
        plain, golden = row["plain"], row["golden"]
        gains = [in_points(of["against_plain"]) for of in (row["redenoised"], golden)]
        line = [
            f"{int(row['model']):,} steps",
            *(f"{100 * plain[key]:.1f} %" for key in ("strict", "layout")),
            *gains,
        ]
        assert f"| {' | '.join(line)} | {in_points(golden['second_against_plain'])} |" in text


def test_the_second_study_meets_the_aim() -> None:
    """Ten points by both judges and more than the better of two, in front of the model and of its student.

    The first judge chooses among seeds for itself; by the second, the student's beat the best of four.
    """
    for name in ("base", "few-step model"):
        rows = {row["arm"]: row for row in SECOND_STUDY["conditions"][name]["rows"]}
        golden = rows["prompt-attention"]
        assert golden["against_plain"]["low"] > 0.10
        assert golden["second_judge"]["against_plain"]["low"] > 0.10
        better = rows["best-of-2:scenes"]
        assert golden["strict"] > better["strict"]
        assert golden["second_judge"]["strict"] > better["second_judge"]["strict"]
    assert golden["second_judge"]["strict"] > rows["best-of-4:scenes"]["second_judge"]["strict"]


def test_the_second_study_is_of_what_is_bundled() -> None:
    listed = json.loads((SCENES.folder / "assets.json").read_text())["files"]
    folders = {
        "scenes": "transformer/diffusion_pytorch_model",
        "scenes-few-step": "few-step/pytorch_lora_weights",
    }
    for condition in SECOND_STUDY["conditions"].values():
        weights = listed[f"{folders[condition['model']]}.safetensors"]["sha256"]
        assert condition["denoiser"] == weights
