"""The tables of a demo, from its results: the same text in the terminal and in the gallery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from npnet_training.demo.drawing import GOLDEN, PLAIN
from npnet_training.demo.summary import STRICT
from npnet_training.evaluation.statistics import in_points

COST = {PLAIN: 1, GOLDEN: 1, "best-of-2": 2}  # images made for each that is judged


@dataclass(frozen=True)
class Table:
    """A title, column heads and rows of text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def about(results: Mapping[str, Any]) -> list[str]:
    """What was run, a line each."""
    model, weights, engine = results["model"], results["weights"], results["engine"]
    denoisers = results["denoisers"].values()
    steps = ", ".join(dict.fromkeys(str(found["steps"]) for found in denoisers))
    guidance = ", ".join(dict.fromkeys(f"{found['guidance']:g}" for found in denoisers))
    return [
        f"model: {model['folder']}, licence {model['licence']}, sha256 of {model['files']} files checked",
        f"golden noise: {weights['file']}, {weights['parameters'] / 1e6:.2f} M parameters, sha256 "
        f"{weights['sha256'][:16]}... checked",
        f"engine: {engine['kind']} {engine['precision']}, at most {engine['differs_by']:.0e} from PyTorch",
        f"{results['prompts']} prompts, {results['pairs']} pairs of images from the same seeds, "
        f"{steps} steps, guidance {guidance}",
    ]


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Strict passes, and facts by kind."""
    return [_strict(results["denoisers"]), _facts(results["denoisers"])]


def timing(results: Mapping[str, Any]) -> list[str]:
    """The time golden noise takes, as a share of the time of denoising."""
    lines = []
    for name, entry in results["denoisers"].items():
        for what, found in entry["time"].items():
            lines.append(
                f"{name} denoiser, {what}: golden noise takes {100 * found['share_of_denoising']:.1f} % of "
                f"the time of denoising ({found['golden_ms']:.2f} of {found['denoising_ms']:.1f} ms, "
                f"medians, rounds: {found['rounds']})"
            )
    return lines


def _strict(denoisers: Mapping[str, Any]) -> Table:
    rows = []
    for name, entry in denoisers.items():
        for arm, found in entry["arms"].items():
            strict = found[STRICT]
            rows.append((name, arm, f"{COST[arm]}x", f"{100 * strict['rate']:.1f} %", *_against(strict)))
    header = ("model", "noise", "cost", "right", "points (95 %)", "won/tied/lost", "p")
    title = "Images in which everything is right, against plain noise from the same seeds"
    return Table(title, header, tuple(rows))


def _against(found: Mapping[str, Any]) -> tuple[str, str, str]:
    if "difference" not in found:
        return "", "", ""
    return in_points(found), f"{found['wins']}/{found['ties']}/{found['losses']}", f"{found['p']:.1g}"


def _facts(denoisers: Mapping[str, Any]) -> Table:
    rows = []
    for name, entry in denoisers.items():
        plain, golden = entry["arms"][PLAIN], entry["arms"][GOLDEN]
        rows += [
            (name, kind, f"{100 * plain[kind]['rate']:.1f} %", f"{100 * golden[kind]['rate']:.1f} %",
             in_points(golden[kind]))
            for kind in plain if kind != STRICT
        ]  # fmt: skip
    header = ("model", "fact", PLAIN, GOLDEN, "points (95 %)")
    return Table("Facts that hold, by kind", header, tuple(rows))
