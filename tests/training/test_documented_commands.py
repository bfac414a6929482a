"""Commands that documents show but tests cannot run, for want of models, are at least understood."""

import re
import shlex
from pathlib import Path

import pytest

from npnet_training import bundle, distill
from npnet_training.bundle import BundleSettings
from npnet_training.collecting import cli as collecting
from npnet_training.collecting import layouts
from npnet_training.collecting.layouts import LayoutSettings
from npnet_training.collecting.settings import CollectSettings
from npnet_training.demo import cli as demo
from npnet_training.demo.settings import DemoSettings
from npnet_training.distill import DistillSettings
from npnet_training.evaluation import cli as evaluation
from npnet_training.evaluation.settings import EvaluateSettings
from npnet_training.headroom import cli as headroom
from npnet_training.headroom.settings import HeadroomSettings
from npnet_training.planning import __main__ as planning
from npnet_training.scenes import build as scenes
from npnet_training.scenes import train_second_judge
from npnet_training.settings import parse
from npnet_training.shapes.build import BuildSettings
from npnet_training.study import __main__ as study
from npnet_training.study import checkpoints
from npnet_training.study.checkpoints import CurveSettings
from npnet_training.study.settings import StudySettings
from npnet_training.training import cli as training
from npnet_training.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "npnet-collect": CollectSettings, "npnet-train": TrainSettings, "npnet-evaluate": EvaluateSettings,
    "npnet-headroom": HeadroomSettings, "npnet-demo": DemoSettings,
    "npnet_training.shapes.build": BuildSettings, "npnet_training.bundle": BundleSettings,
    "npnet_training.distill": DistillSettings,
    "npnet_training.study": StudySettings, "npnet_training.planning": planning.PlanningSettings,
    "npnet_training.scenes.build": scenes.BuildSettings,
    "npnet_training.collecting.layouts": LayoutSettings, "npnet_training.study.checkpoints": CurveSettings,
    "npnet_training.scenes.train_second_judge": train_second_judge.SecondJudgeSettings,
}  # fmt: skip
DOCUMENTS = ("README.md", "training/README.md", "training/models.md")
MODULE = (
    r"python -m npnet_training\.(?:shapes\.build|scenes\.\w+|bundle|distill|study(?:\.checkpoints)?|planning|"
    r"collecting\.layouts)"
)
COMMANDS_OF = (
    collecting, layouts, training, evaluation, headroom, demo, bundle, distill, study, checkpoints,
)  # fmt: skip
TEXTS = [
    *((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS),
    *(module.EPILOG for module in COMMANDS_OF),
]
COMMANDS = [
    found[0].replace("\\\n", " ").strip("` ").removeprefix("python -m ")
    for text in TEXTS
    for found in re.finditer(
        rf"(?:npnet-(?:collect|train|evaluate|headroom|demo)|{MODULE}) --(?:[^`\n\\]|\\\n)+", text
    )
]


def test_every_command_is_documented() -> None:
    assert {command.split()[0] for command in COMMANDS} == set(SETTINGS)


@pytest.mark.parametrize("command", [command for command in COMMANDS if "..." not in command])
def test_documented_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # recipes are named from there
    name, *arguments = shlex.split(command)
    if arguments == ["--help"]:
        return
    settings = parse(SETTINGS[name], name, arguments)
    assert settings.output != Path()
