"""Prompts from a file, a dataset of the hub, or one of the embedded worlds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npnet_training.errors import PromptsError
from npnet_training.prompt_files import read_rows

COLUMNS = ("prompt", "caption", "text", "Prompts")
OF_WORLDS = ("shapes:", "scenes:")  # what the sources of their prompts begin with
LONGEST = 10_000  # characters; no text encoder reads as many


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what else its source says of it (GenEval's `tag` and `include`, a category)."""

    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(source: str) -> Iterator[Prompt]:
    """Prompts in the order of their source, duplicates as they are, blank ones left out.

    Args:
        source: a file, gzipped or not: `.csv`, `.tsv`, `.json` and `.jsonl` with a column `prompt`, `caption`
            or `text`, a JSON list of prompts, any other with a prompt a line;
            `hub:OWNER/DATASET[:SPLIT[:COLUMN]]`, streamed; or `shapes:train|held-out:COUNT[:SEED]`, and the
            same of `scenes`, with the kind of each prompt as its `tag`.

    Raises:
        PromptsError: missing, malformed, or without a prompt. A line's error is raised when it is reached.
    """
    if source.startswith(OF_WORLDS):
        found = _world(source)
    elif source.startswith("hub:"):
        found = _hub(source)
    else:
        found = (_prompt(row, where) for where, row in read_rows(Path(source)))
    empty = True
    for prompt in found:
        if len(prompt.text) > LONGEST:
            raise PromptsError(
                f"{source}: expected prompts of at most {LONGEST} characters, given one of "
                f"{len(prompt.text)}: {prompt.text[:60]!r}..."
            )
        try:
            prompt.text.encode()
        except UnicodeEncodeError as error:
            raise PromptsError(
                f"{source}: expected prompts that are text, given half a surrogate pair: {prompt.text[:60]!a}"
            ) from error
        if prompt.text.strip():
            empty = False
            yield prompt
    if empty:
        raise PromptsError(f"{source}: expected at least one prompt, found none")


def _world(source: str) -> Iterator[Prompt]:
    from npnet_training.scenes import grammar as scenes
    from npnet_training.shapes import grammar as shapes

    name, *parts = source.split(":")
    if (
        len(parts) not in (2, 3)
        or parts[0] not in ("train", "held-out")
        or not all(p.isdigit() for p in parts[1:])
    ):
        raise PromptsError(f"expected {name}:train|held-out:COUNT[:SEED], given {source!r}")
    seed = int(parts[2]) if len(parts) == 3 else 0
    split: shapes.Split = "train" if parts[0] == "train" else "held-out"
    if name == "shapes":
        yield from map(Prompt, shapes.prompts(split, int(parts[1]), seed))
        return
    for text in scenes.prompts(split, int(parts[1]), seed):
        yield Prompt(text, {"tag": scenes.Scene.parse(text).kind})


def _hub(source: str) -> Iterator[Prompt]:
    name, split, column, *_ = [*source.split(":")[1:], "", ""]
    try:
        from datasets import load_dataset

        rows = load_dataset(name, split=split or "train", streaming=True)
        for row in rows:
            yield _prompt(dict(row), source, column or None)
    except ImportError as error:
        raise PromptsError(f"{source} needs datasets: pip install 'npnet-runtime[train]'") from error
    except PromptsError:
        raise
    except Exception as error:  # datasets raises whatever its network library does
        raise PromptsError(f"{source}: cannot read the dataset ({type(error).__name__}: {error})") from error


def _prompt(row: Any, where: str, column: str | None = None) -> Prompt:
    if isinstance(row, str):
        return Prompt(row.strip())
    if isinstance(row, dict):
        for name in (column,) if column else COLUMNS:
            if isinstance(row.get(name), str):
                return Prompt(row[name].strip(), {k: v for k, v in row.items() if k != name})
    given = sorted(map(str, row)) if isinstance(row, dict) else row
    raise PromptsError(f"{where}: expected a text in {column or ' or '.join(COLUMNS[:3])}, given {given}")
