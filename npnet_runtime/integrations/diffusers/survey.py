"""Every pipeline that the installed diffusers exports, judged."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from npnet_runtime.integrations.diffusers.checks import Verdict, judge
from npnet_runtime.integrations.diffusers.reading import reading_of


@dataclass(frozen=True)
class Surveyed:
    """A class of pipelines that takes a prompt, and what golden noise makes of it.

    Args:
        name: of the class.
        verdict: whether golden noise can be attached.
        encodes: names of what it encodes of the positive prompt.
    """

    name: str
    verdict: Verdict
    encodes: tuple[str, ...]


def survey() -> Iterator[Surveyed]:
    """Every class of pipelines that diffusers exports and that takes a prompt, in the order of the alphabet.

    Modular pipelines and those whose packages are not installed are left out: they have no call to look at.
    """
    import diffusers

    for name in sorted(dir(diffusers)):
        if not name.endswith("Pipeline") or "Modular" in name:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            found = getattr(diffusers, name)
        if not inspect.isclass(found) or getattr(found, "_backends", None):
            continue  # a placeholder for what is not installed
        call = getattr(found, "__call__", None)  # noqa: B004
        if call is None or "prompt" not in inspect.signature(call).parameters:
            continue
        yield Surveyed(name, judge(found), tuple(reading_of(found).positive()))


def table() -> str:
    """The survey in Markdown: what works, then what is refused, by reason."""
    import diffusers

    found = list(survey())
    works = [f for f in found if f.verdict.supported]
    lines = [
        f"With diffusers {diffusers.__version__}, {len(works)} of {len(found)} classes that take a prompt:"
    ]
    lines += ["", "| pipeline | what it encodes of the prompt |", "|---|---|"]
    lines += [f"| `{f.name}` | {', '.join(f'`{name}`' for name in f.encodes)} |" for f in works]
    lines += ["", "| refused, as it | pipelines |", "|---|---|"]
    reasons: dict[str, list[str]] = {}
    for f in found:
        if not f.verdict.supported:
            reasons.setdefault(f.verdict.reason, []).append(f"`{f.name}`")
    lines += [f"| {reason} | {', '.join(names)} |" for reason, names in sorted(reasons.items())]
    return "\n".join(lines) + "\n"
