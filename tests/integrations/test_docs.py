"""The examples of docs/ are run, with a small pipeline and engine in place of the released ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from npnet_export import ExportSettings, export
from npnet_export.for_pipeline import config_for
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle, GoldenNoise
from support.flow_pipelines import flux

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# The sizes of SDXL -> of the small pipeline.
SMALLER = {r"128, 128": "16, 16", r"152, 104": "19, 13", r"2048": "32"}
SMALLER_FLUX = {r"104, 152": "8, 12", r"832": "64", r"1216": "96"}
EXAMPLES = [
    pytest.param(note.strip(), code, id=f"{document.stem}-{number}")
    for document in sorted(DOCS.glob("*.md"))
    for number, (note, code) in enumerate(FENCE.findall(document.read_text()))
    if "norun" not in note
]


@pytest.mark.parametrize(("note", "code"), EXAMPLES)
def test_example(
    note: str,
    code: str,
    sdxl: Any,
    text_bundle: EngineBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "sdxl").symlink_to(text_bundle.path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for large, small in (SMALLER_FLUX if note == "flux" else SMALLER).items():
        code = re.sub(large, small, code)
    names: dict[str, Any] = {"torch": torch, "GoldenNoise": GoldenNoise} if note else {}
    if note == "pipeline":
        names["pipe"] = sdxl
    if note == "flux":
        names["pipe"] = flux(guidance=False)
        config, reads = config_for(names["pipe"], height=64, width=96)
        weights = WeightsRequest(None, random_seed=0, shapes=config, reads=reads)
        export(ExportSettings(weights, tmp_path / "engines" / "flux-try", "flux", "torch", device="cpu"))
    exec(compile(code, "example", "exec"), names)
    if "image" in names:
        assert names["image"].size == ((96, 64) if note == "flux" else (32, 32))
    if "plain" in names:
        assert names["plain"].tobytes() != names["image"].tobytes()
