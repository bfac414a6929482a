"""What a run of `npnet-generate` was asked for, and which of it decides what an image looks like."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from npnet_runtime.errors import GenerateError

Kind = Literal["plain", "golden"]
FILENAME = "settings.json"


@dataclass(frozen=True)
class GenerateSettings:
    """A run.

    Args:
        model: hub id, folder or single file of a diffusers pipeline.
        engine: folder of an engine bundle.
        engine_digest: of that bundle.
        prompts: one or more.
        seeds: of each prompt; the same for plain and golden noise.
        compare: make images from plain noise as well.
        steps: of denoising; None for the pipeline's default.
        guidance: classifier-free guidance; None for the pipeline's default.
        negative_prompt: None for none.
        height: of the images, in pixels; None for the pipeline's default.
        width: likewise.
        dtype: of the pipeline: float32, float16 or bfloat16.
        device: of pipeline and engine.
        tokens: policy for long prompts.
        resolution: policy for other sizes.
        scorer: `module:function` that gives an image and its prompt a number; None for none.
        strength: how golden, from 0 to 1.
        config: hub id or folder whose configuration a single file has.
    """

    model: str
    engine: str
    engine_digest: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    compare: bool
    steps: int | None
    guidance: float | None
    negative_prompt: str | None
    height: int | None
    width: int | None
    dtype: str
    device: str
    tokens: str
    resolution: str
    scorer: str | None
    strength: float = 1.0
    config: str | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Of the images of a seed."""
        return ("plain", "golden") if self.compare else ("golden",)

    @property
    def images(self) -> list[ImageSettings]:
        """All images, in the order in which they are made."""
        return [
            ImageSettings(prompt, seed, kind)
            for prompt in self.prompts
            for seed in self.seeds
            for kind in self.kinds
        ]

    def digest(self) -> str:
        """Names all that decides what an image of a given prompt, seed and kind looks like, or its score."""
        free = {"prompts", "seeds", "compare", "engine"}
        if self.strength == 1:  # as in records of runs that knew no other
            free.add("strength")
        if self.config is None:
            free.add("config")
        decisive = {name: value for name, value in asdict(self).items() if name not in free}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def call(self) -> dict[str, Any]:
        """Keyword arguments of the pipeline; what was not asked for is left to it."""
        asked = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "negative_prompt": self.negative_prompt,
            "height": self.height,
            "width": self.width,
        }
        return {name: value for name, value in asked.items() if value is not None}

    def check_output(self, folder: Path) -> None:
        """Check that a folder holds nothing, or an earlier part of this run.

        Raises:
            GenerateError: it holds something else.
        """
        if not folder.exists() or (folder.is_dir() and {p.name for p in folder.iterdir()} <= {FILENAME}):
            return
        path = folder / FILENAME
        if not path.is_file():
            raise GenerateError(
                f"{folder}: expected a new folder or one of an earlier run, found neither; "
                "choose another --output"
            )
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))["digest"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise GenerateError(f"{path}: cannot be read ({error}); choose another --output") from error
        if earlier != self.digest():
            raise GenerateError(
                f"{folder} holds images made with other settings (see {path}); choose another --output, or "
                "give the same settings to go on with them: prompts and seeds may be added"
            )


@dataclass(frozen=True)
class ImageSettings:
    """One image.

    Args:
        prompt: of the image.
        seed: of its noise.
        kind: of its noise.
    """

    prompt: str
    seed: int
    kind: Kind

    @property
    def filename(self) -> str:
        """Readable, and of its own for each prompt."""
        words = re.sub(r"[^a-z0-9]+", "-", self.prompt.lower()).strip("-")[:40]
        digest = hashlib.sha256(self.prompt.encode()).hexdigest()[:8]
        return f"{words or 'prompt'}-{digest}-{self.seed}-{self.kind}.png"


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from `0-7`, `3`, `1,5,9` or a mixture; in order, each once.

    Raises:
        ValueError: not of that form.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last >= 2**63:
            raise ValueError(f"expected seeds of at most 2^63 - 1 = {2**63 - 1}, given {text!r}")
        if last < first:
            raise ValueError(f"expected seeds as in 0-7 or 1,5,9, given {text!r}")
        if last - first >= 100_000:
            raise ValueError(f"expected fewer than 100,000 seeds, given {text!r}")
        seeds |= dict.fromkeys(range(first, last + 1))
    return tuple(seeds)
