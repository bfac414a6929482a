"""The study as a table and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from npnet_runtime.files import atomic_file
from npnet_training.evaluation.arms import PLAIN
from npnet_training.evaluation.statistics import in_points

TABLE, FIGURE = "study.md", "study.png"


def write_report(document: dict[str, Any], folder: Path) -> None:
    """Write `study.md` and `study.png`.

    Args:
        document: as `study` returns it.
        folder: where to.
    """
    with atomic_file(folder / TABLE) as temporary:
        temporary.write_text(table(document), encoding="utf-8")
    _draw(document, folder / FIGURE)


def table(document: dict[str, Any]) -> str:
    """Markdown: a table for each condition."""
    lines: list[str] = []
    for name, condition in document["conditions"].items():
        sample = condition["sample"]
        own = "Euler" if condition["model"].startswith("scenes") else "DDIM"
        size = f", {condition['size']} pixels" if "size" in condition else ""
        twice = "second_judge" in condition["rows"][0]
        head, rule = (" second judge | against plain |", "---|---|") if twice else ("", "")
        lines += [
            f"### {name}",
            "",
            f"{condition['images']} images, model {condition['model']}, {sample['steps']} steps of "
            f"{sample['scheduler'] or own}, guidance {sample['guidance']:g}{size}.",
            "",
            f"| noise | strictly true | against plain, 95 % | won / tied / lost |{head} diversity | change |",
            f"|---|---|---|---|{rule}---|---|",
            *(_line(row) for row in condition["rows"]),
            "",
        ]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    difference = duels = diversity = second = ""
    if row["arm"] != PLAIN:
        found = row["against_plain"]
        difference = in_points(found)
        duels = f"{found['wins']} / {found['ties']} / {found['losses']}"
    if "diversity" in row:
        diversity = f"{row['diversity']:.3f}"
    if "second_judge" in row:
        found = row["second_judge"]
        against = in_points(found["against_plain"]) if "against_plain" in found else ""
        second = f" {100 * found['strict']:.1f} % | {against} |"
    return (
        f"| {row['arm']} | {100 * row['strict']:.1f} % | {difference} | {duels} |{second} {diversity} | "
        f"{row['noise']['change']:.2f} |"
    )


def _draw(document: dict[str, Any], path: Path) -> None:
    """Differences from plain noise with their intervals, a panel for each condition."""
    from matplotlib.figure import Figure

    conditions = document["conditions"]
    heights = [1 + 0.28 * len(condition["rows"]) for condition in conditions.values()]
    figure = Figure(figsize=(8, sum(heights)), layout="constrained")
    grid = figure.subplots(len(conditions), 1, squeeze=False, height_ratios=heights, sharex=True)
    for axes, (name, condition) in zip(grid[:, 0], conditions.items(), strict=True):
        rows = [row for row in condition["rows"] if row["arm"] != PLAIN]
        plain = next(row for row in condition["rows"] if row["arm"] == PLAIN)
        for place, row in enumerate(rows):
            found = row["against_plain"]
            axes.plot(
                [100 * found["low"], 100 * found["high"]], [place, place], color="C0", alpha=0.5, linewidth=4
            )
            axes.plot(100 * found["difference"], place, "o", color="C0")
        axes.axvline(0, color="grey", linewidth=1)
        axes.set_yticks(range(len(rows)), [row["arm"] for row in rows])
        axes.invert_yaxis()
        axes.set_title(f"{name}: plain noise {100 * plain['strict']:.1f} % strictly true", fontsize=10)
    grid[-1, 0].set_xlabel("points against plain noise, with 95 % interval")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
