"""Settings from YAML and flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, field_validator, model_validator

from npnet_training.errors import SettingsError
from npnet_training.settings import WHOLE, Settings, parse, validate


class Inner(Settings):
    """Inner settings."""

    steps: int = Field(10, ge=1)
    """Steps of the schedule."""
    kind: Literal["a", "b"] = "a"
    """Which kind."""


class Outer(Settings):
    """Do a thing."""

    model: str
    """Model to load."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the noise."""
    texts: Annotated[tuple[str, ...], WHOLE] = ("none",)
    """Texts, with commas or not."""
    dry_run: bool = False
    """Only say what would be done."""
    limit: int | None = None
    """At most this many."""
    inner: Inner = Inner()
    """Inner part."""


def read(*arguments: str) -> Outer:
    return parse(Outer, "npnet-thing", arguments)


def test_flags() -> None:
    settings = read("--model", "m", "--inner.kind", "b", "--seeds", "1", "--seeds", "2", "--dry-run")
    assert settings == Outer(model="m", seeds=(1, 2), dry_run=True, inner=Inner(kind="b"))
    assert read("--model", "m", "--seeds", "3,4", "--limit", "5").seeds == (3, 4)


def test_a_whole_element_keeps_its_commas(tmp_path: Path) -> None:
    texts = ("a, b", 'c "d', "5", "[e]")
    flags = [flag for text in texts for flag in ("--texts", text)]
    assert read("--model", "m", *flags, "--seeds", "3,4") == Outer(model="m", texts=texts, seeds=(3, 4))
    file = tmp_path / "settings.yaml"
    file.write_text("model: m\ntexts: ['f, g']\n")
    assert read("--config", str(file)).texts == ("f, g",)
    assert read("--config", str(file), "--texts", "h").texts == ("h",)
    assert read("--model", "m").texts == ("none",)


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("model: m\nseeds: [7]\ninner: {steps: 3, kind: b}\n")
    settings = read("--config", str(file), "--inner.steps", "4")
    assert settings == Outer(model="m", seeds=(7,), inner=Inner(steps=4, kind="b"))
    assert read(f"--config={file}").inner.steps == 3


def test_yaml_reads_back(tmp_path: Path) -> None:
    settings = Outer(model="ein Größeres", seeds=(1, 2), inner=Inner(steps=2))
    file = tmp_path / "settings.yaml"
    file.write_text(settings.to_yaml())
    assert read("--config", str(file)) == settings


def test_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMIT", "9")
    assert read("--model", "m").limit is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--model: Field required"),
        (("--model", "m", "--inner.steps", "0"), r"--inner.steps: .*greater than or equal to 1, given '0'"),
        (("--model", "m", "--seeds", "x"), r"--seeds.0: .*integer.*given 'x'"),
        (("--model", "m", "--config", "nowhere.yaml"), "--config nowhere.yaml: expected a YAML file"),
    ],
)
def test_refuses(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read(*arguments)


@pytest.mark.parametrize("text", ["- a\n", "model: [", "model: m\nunknown: 1\n", "model: m\ninner: 3\n"])
def test_refuses_files(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"settings.yaml|--unknown|--inner"):
        read("--config", str(file))


def test_unknown_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        read("--model", "m", "--modle", "x")
    assert stopped.value.code == 2
    assert "--modle" in capsys.readouterr().err


def test_validate_names_the_place() -> None:
    with pytest.raises(SettingsError, match=r"pairs.json: --model: Field required"):
        validate(Outer, {}, "pairs.json")


class Checked(Settings):
    """Two settings that must agree."""

    batch: int = 4
    """Images at once."""
    seeds: int = 2
    """Seeds of a prompt."""

    @field_validator("seeds")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("expected an even number")
        return value

    @model_validator(mode="after")
    def _together(self) -> Checked:
        if self.batch % self.seeds:
            raise ValueError(f"batch {self.batch} must be a multiple of seeds {self.seeds}")
        return self


def test_errors_of_checks_are_said_as_they_are() -> None:
    """Without pydantic's announcement; and those of several settings without a flag that is none."""
    for arguments, said in (
        (("--seeds", "3"), "--seeds: expected an even number, given '3'\nsee npnet-thing --help"),
        (("--seeds", "6"), "batch 4 must be a multiple of seeds 6\nsee npnet-thing --help"),
    ):
        with pytest.raises(SettingsError) as raised:
            parse(Checked, "npnet-thing", arguments)
        assert str(raised.value) == said
