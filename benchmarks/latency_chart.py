"""The chart of a latency run: one group of bars per batch, one bar per engine, split into halves."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the chart of what `latency.py` measured as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    batches = sorted({row["batch"] for row in result["rows"]})
    figure, axes = pyplot.subplots(1, len(batches), figsize=(5.5 * len(batches), 3.6), squeeze=False)
    for axis, batch in zip(axes[0], batches, strict=True):
        rows = [row for row in result["rows"] if row["batch"] == batch]
        for position, row in enumerate(rows):
            times = row["milliseconds"]
            spectral, whole = times["spectral half"]["median"], times["end to end"]["median"]
            axis.barh(position, spectral, color="#4C78A8", label="spectral half (noise only)")
            axis.barh(position, whole - spectral, left=spectral, color="#F58518", label="prompt half")
            ratio = row.get("speed_up", {}).get("end to end")
            text = f"{whole:.1f} ms" + (f"  {ratio:.2f}x" if ratio and position else "")
            axis.text(whole * 1.01, position, text, va="center")
        axis.set_yticks(range(len(rows)), [row["engine"] for row in rows])
        axis.invert_yaxis()
        axis.set_xlim(right=1.3 * max(row["milliseconds"]["end to end"]["median"] for row in rows))
        axis.set_xlabel("milliseconds, median, end to end")
        axis.set_title(f"{result['model']}, batch {batch}")
        handles, labels = axis.get_legend_handles_labels()
        axis.legend(handles[:2], labels[:2], loc="lower right", fontsize=8)
    environment = result["environment"]
    figure.suptitle(f"{environment.get('gpu', environment['cpu'])}, {environment['cores']} cores", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
