"""The chart of a latency run: one bar per engine and batch, split into halves.

On a GPU bars are milliseconds; on a CPU, whose times say little about another, shares of the published
computation's time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the chart of what `latency.py` measured as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    gpu = result["environment"].get("gpu")
    batches = sorted({row["batch"] for row in result["rows"]})
    figure, axes = pyplot.subplots(1, len(batches), figsize=(5.5 * len(batches), 3.4), squeeze=False)
    for axis, batch in zip(axes[0], batches, strict=True):
        rows = [row for row in result["rows"] if row["batch"] == batch]
        published = rows[0]["milliseconds"]["end to end"]["median"]
        unit = 1.0 if gpu else published
        for position, row in enumerate(rows):
            whole = row["milliseconds"]["end to end"]["median"] / unit
            prompt = min(row["milliseconds"]["prompt half"]["median"] / unit, whole)
            axis.barh(position, prompt, color="#F58518", label="once the prompt is known")
            axis.barh(position, whole - prompt, left=prompt, color="#4C78A8", label="can be done ahead")
            ratio = row.get("speed_up", {}).get("end to end")
            text = f"{whole:.2f} ms  " if gpu else ""
            axis.text(whole, position, f" {text}{f'{ratio:.2f}x' if ratio else 'no ratio'}", va="center")
        axis.set_yticks(range(len(rows)), [row["engine"] for row in rows])
        axis.invert_yaxis()
        axis.set_xlim(right=1.3 * max(row["milliseconds"]["end to end"]["median"] for row in rows) / unit)
        axis.set_xlabel("milliseconds" if gpu else "share of the published computation's time")
        axis.set_title(f"{result['model']}, batch {batch}, medians, end to end")
    handles, labels = axes[0][0].get_legend_handles_labels()
    where = f"{gpu or result['environment']['cpu']}, {result['environment']['cores']} CPU cores"
    figure.legend(handles[:2], labels[:2], loc="lower center", ncols=2, title=where, fontsize=9)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
