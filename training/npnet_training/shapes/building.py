"""What the builds of both worlds share: a work folder to go on with, parts in half precision, looks."""

from __future__ import annotations

import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

from npnet_runtime.files import atomic_directory, atomic_file
from npnet_training.errors import TrainError
from npnet_training.settings import Settings, differences

LOOKS, WANTED, METRICS = "looks.json", "settings.json", "metrics.json"
CHECKPOINTS = "checkpoints"


def begin(output: Path, settings: Settings) -> Path:
    """Begin a build, or go on with it: the work folder beside its output.

    Raises:
        TrainError: the output exists, the work folder is of other settings, or it cannot be written.
    """
    work = output.with_name(output.name + ".work")
    if output.exists():
        raise TrainError(f"--output {output}: exists; give another, or delete it")
    own = json.loads(settings.model_dump_json(exclude={"output"}))
    try:
        work.mkdir(parents=True, exist_ok=True)
        if (work / WANTED).exists():
            wrong = differences(json.loads((work / WANTED).read_text()), own)
            if wrong:
                raise TrainError(
                    f"{work} was begun with other settings, delete it or give them again:\n  "
                    + "\n  ".join(wrong)
                )
        with atomic_file(work / WANTED) as temporary:
            temporary.write_text(json.dumps(own, indent=1) + "\n")
    except OSError as error:
        raise TrainError(f"--output {output}: cannot be written ({error})") from error
    return work


def save(part: Any, folder: Path) -> None:
    """In half precision, whole or not at all."""
    with atomic_directory(folder, replace=True) as temporary:
        copy.deepcopy(part).cpu().half().save_pretrained(temporary, safe_serialization=True)
        config = json.loads((temporary / "config.json").read_text())
        config.pop("_name_or_path", None)  # the work folder, so that any output gives the same bytes
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load(kind: Any, folder: Path, device: Any) -> Any:
    """A part that `save` wrote, in float32, in evaluation mode."""
    return kind.from_pretrained(folder).float().to(device).eval()


def read_looks(work: Path) -> list[dict[str, Any]]:
    """All looks at the denoiser so far."""
    found: list[dict[str, Any]] = json.loads((work / LOOKS).read_text()) if (work / LOOKS).exists() else []
    return found


def add_look(work: Path, step: int, look: dict[str, Any]) -> None:
    """Remember a look, in place of an earlier one at the same step."""
    looks = [found for found in read_looks(work) if found["step"] != step]
    looks.append({"step": step, **look})
    print(json.dumps(looks[-1]), file=sys.stderr, flush=True)
    with atomic_file(work / LOOKS) as temporary:
        temporary.write_text(json.dumps(looks) + "\n")


class Lines:
    """A `Report` of one line a hundred steps."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def __call__(self, stage: str, step: int, loss: float) -> None:
        """One step is done."""
        if step % 100 == 0:
            passed = time.perf_counter() - self.began
            print(f"{passed:6.0f} s  {stage} step {step}: loss {loss:.4f}", file=sys.stderr, flush=True)
