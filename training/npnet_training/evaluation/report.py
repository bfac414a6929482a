"""The report of an evaluation: Markdown, and the same as one HTML file with its pictures inside."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jinja2

from npnet_runtime.files import atomic_file
from npnet_training.evaluation.arms import PLAIN
from npnet_training.evaluation.results import Results

Table = tuple[str, list[str], list[list[str]]]
"""Title, header, rows."""
_HTML = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Evaluation</title>
<style>body{font-family:sans-serif;max-width:75em;margin:2em auto}table{border-collapse:collapse;margin:1em 0}
td,th{border:1px solid #ccc;padding:.3em .6em;text-align:right}td:first-child,th:first-child{text-align:left}
img{width:128px;image-rendering:pixelated}caption{text-align:left;font-weight:bold}</style>
<h1>{{ title }}</h1><p>{{ lead }}</p>
{% for caption, header, rows in tables %}<table><caption>{{ caption }}</caption>
<tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endfor %}
{% if pictures %}<table><caption>Pictures from the same seeds</caption><tr><th>prompt</th>
{% for arm in arms %}<th>{{ arm }}</th>{% endfor %}</tr>
{% for prompt, images in pictures %}<tr><td>{{ prompt }}</td>
{% for image in images %}<td>{% if image %}<img src="data:image/png;base64,{{ image }}">{% endif %}</td>
{% endfor %}</tr>{% endfor %}</table>{% endif %}
<pre>{{ settings }}</pre></html>
"""


def write_report(results: Results, folder: Path, *, resamples: int = 10_000) -> dict[str, Any]:
    """Write `results.json`, `report.md` and `report.html`.

    Returns:
        The content of `results.json`.
    """
    summary = results.summary(resamples=resamples)
    tables = [
        _comparison(results, summary), _paper(results, summary), *_by_category(results, resamples),
        _cost(summary), _noise(summary), *_diversity(summary),
    ]  # fmt: skip
    settings = summary["settings"]
    title = f"{settings['model']}: {', '.join(results.arms)}"
    lead = (
        f"{len({row['prompt'] for row in results.rows})} prompts of {settings['prompts']}, "
        f"{settings['seeds']} seed(s) each, the same in all arms; {settings['sample']['steps']} steps, "
        f"guidance {settings['sample']['guidance']}. Differences are arm minus plain, with 95 % intervals by "
        f"bootstrap over prompts; p is that of the two-sided sign test."
        + "".join(
            f" {entry['unjudged']} images of {name} are plain ones: its scorer gave no candidate a number."
            for name, entry in summary["results"].items()
            if entry["unjudged"]
        )
    )
    with atomic_file(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    with atomic_file(folder / "report.md") as temporary:
        temporary.write_text(
            "\n\n".join([f"# {title}", lead, *map(_markdown, tables)]) + "\n", encoding="utf-8"
        )
    page = jinja2.Environment(autoescape=True).from_string(_HTML)
    shown = json.dumps(settings, indent=1)
    with atomic_file(folder / "report.html") as temporary:
        text = page.render(
            title=title, lead=lead, tables=tables, arms=list(results.arms), settings=shown,
            pictures=_pictures(results, folder),
        )  # fmt: skip
        temporary.write_text(text, encoding="utf-8")
    return summary


def _comparison(results: Results, summary: dict[str, Any]) -> Table:
    header = ["arm", "cost", "scorer", "plain", "arm", "difference", "win / tie / loss", "p"]
    rows = []
    for name in results.arms:
        for scorer in results.scorers if name != PLAIN else []:
            found = summary["results"][name]["scores"][scorer]
            plain = summary["results"][PLAIN]["scores"][scorer]["mean"]
            rows.append([
                name, f"{summary['candidates'][name]}x", scorer, f"{plain:.4g}", f"{found['mean']:.4g}",
                f"{found['difference']:+.4g} ({found['low']:+.4g} to {found['high']:+.4g})",
                f"{found['wins']} / {found['ties']} / {found['losses']}", f"{found['p']:.2g}",
            ])  # fmt: skip
    return "Against plain noise", header, rows


def _paper(results: Results, summary: dict[str, Any]) -> Table:
    """The layout of the paper's tables (arXiv 2411.09502, tables 1 to 3)."""
    rows = []
    for name in results.arms:
        scores = summary["results"][name]["scores"]
        rates = [f"{100 * s['wins'] / s['pairs']:.1f} %" if "wins" in s else "-" for s in scores.values()]
        rows.append([name, *(f"{score['mean']:.4f}" for score in scores.values()), *rates])
    header = ["noise", *results.scorers, *(f"winning rate, {scorer}" for scorer in results.scorers)]
    return "As in the paper", header, rows


def _by_category(results: Results, resamples: int) -> list[Table]:
    names = [name for name in results.arms if name != PLAIN]
    if not results.categories:
        return []
    rows = []
    for category in results.categories:
        for name in names:
            for scorer in results.scorers:
                found = results.compare(name, scorer, resamples=resamples, category=category)
                cells = [f"{found.difference:+.4g} ({found.low:+.4g} to {found.high:+.4g})", str(found.pairs)]
                rows.append([category, name, scorer, *cells])
    return [("By kind of prompt", ["kind", "arm", "scorer", "difference", "images"], rows)]


def _cost(summary: dict[str, Any]) -> Table:
    plain = summary["results"][PLAIN]["image_ms"]["median"]
    rows = []
    for name, entry in summary["results"].items():
        noise, image = entry["noise_ms"], entry["image_ms"]
        ratio = (noise["median"] + image["median"]) / plain
        cells = (f"{part['median']:.3g} ({part['p90']:.3g})" for part in (noise, image))
        rows.append([name, *cells, f"{ratio:.3f}"])
    return "Time of an image, median (p90) of batches", ["arm", "noise, ms", "sampling, ms", "to plain"], rows


def _noise(summary: dict[str, Any]) -> Table:
    results = summary["results"]
    rows = [[name, *(f"{value:.4g}" for value in entry["noise"].values())] for name, entry in results.items()]
    return "The noise itself (best-of-N: its first candidate)", ["arm", *results[PLAIN]["noise"]], rows


def _diversity(summary: dict[str, Any]) -> list[Table]:
    results = summary["results"]
    if results[PLAIN]["diversity"] is None:
        return []
    plain, rows = results[PLAIN]["diversity"], []
    for name, entry in results.items():
        found = entry.get("diversity_difference")
        change = f"{found['difference']:+.4g} ({found['low']:+.4g} to {found['high']:+.4g})" if found else "-"
        rows.append([name, f"{entry['diversity']:.4g}", f"{entry['diversity'] / plain:.3f}", change])
    caption = "Diversity: mean distance between the seeds of a prompt"
    return [(caption, ["arm", "distance", "to plain", "difference"], rows)]


def _pictures(results: Results, folder: Path) -> list[tuple[str, list[str | None]]]:
    prompts = list(dict.fromkeys(row["prompt"] for row in results.rows))
    found = []
    for number, prompt in enumerate(prompts):
        paths = [folder / "pictures" / f"{number:04d}-{arm}.png" for arm in range(len(results.arms))]
        if any(path.exists() for path in paths):
            found.append((prompt, [_encoded(path) if path.exists() else None for path in paths]))
    return found


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _markdown(table: Table) -> str:
    caption, header, rows = table
    return f"## {caption}\n\n" + "\n".join(markdown_lines(header, rows))


def markdown_lines(header: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
