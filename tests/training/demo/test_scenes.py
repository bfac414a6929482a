"""The demo in the second world, from what is bundled."""

import json
from pathlib import Path

from npnet_training.demo.checks import RESULTS
from npnet_training.demo.cli import main


def test_both_denoisers_at_their_own_settings(tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ["--world", "scenes", "--model", "both", "--prompts", "4", "--steps", "2", "--pictures", "2"]
    assert main([*options, "--resamples", "200", "--engine", "torch", "--output", str(output)]) == 0
    results = json.loads((output / RESULTS).read_text())
    assert results["model"]["folder"] == "scenes, bundled"
    assert {name: found["guidance"] for name, found in results["denoisers"].items()} == {
        "main": 3.0, "few-step": 1.0,
    }  # fmt: skip
    kinds = set(results["denoisers"]["main"]["arms"]["golden"])
    assert {"count", "thing", "relation", "strict"} <= kinds
    assert {path.name for path in output.glob("*.png")} == {"grid-main.png", "grid-few-step.png"}
