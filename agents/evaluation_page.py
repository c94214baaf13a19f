"""report.html of `rlsr evaluate`: one file that needs no network, with a slider over each picture."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from agents.evaluation_pictures import Comparison, Shown
from agents.evaluation_report import ANCHORS, NO_VALUE, cells, display_name
from agents.reports import HEADINGS
from gan.evaluation import REPORTED
from rlsr_env.files import write_whole

TEMPLATE = Path(__file__).with_name("evaluation_page.html")


def write_page(path: Path, results: Mapping[str, Any], plot: Path, comparisons: Sequence[Comparison]) -> None:
    """Write the page.

    Args:
        path: Where.
        results: From `agents.evaluation_report.collect`.
        plot: rd.png.
        comparisons: The pictures to show; none leaves their part out.
    """
    n_skipped = len(results["skipped"])
    subtitle = f"{len(results['pictures'])} pictures of {results['data']['name']}"
    if n_skipped:
        subtitle += f"; {n_skipped} more could not be used: " + ", ".join(one["name"] for one in results["skipped"])
    names = list(results["curves"])
    leading = [name for name in names if results["curves"][name]["leading"]]
    figures = "".join(_figure(number, comparison) for number, comparison in enumerate(comparisons))
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"Rate and distortion: {results['data']['name']}"),
        subtitle=escape(subtitle),
        summary=_metric_table(results, "psnr", leading),
        plot=_data_uri(plot.read_bytes(), "image/png"),
        pictures=f"<h2>Look for yourself</h2>\n{_HINT}{figures}" if figures else "",
        details="".join(_folded(HEADINGS[metric], _metric_table(results, metric, names)) for metric in REPORTED)
        + _folded("BD-rates and ranges", _bd_table(results)),
        command=escape(results["command"]),
        versions=escape(", ".join(f"{name} {text}" for name, text in results["versions"].items())),
    )
    write_whole(path, lambda file: file.write(text.encode()))


_HINT = (
    '<p class="faint">Drag the divider, or focus it and use the arrow keys. Figures are of the whole picture; what it '
    "is compared with has at most as many bytes, where the codec goes so low.</p>\n"
)


def _data_uri(content: bytes, media_type: str) -> str:
    """Content as part of the page."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _folded(title: str, content: str) -> str:
    """Something that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>\n"


def _metric_table(results: Mapping[str, Any], metric: str, names: Sequence[str]) -> str:
    """A metric at the rates."""
    rows = []
    for name, row in cells(results, metric, names).items():
        entries = "".join(f'<td class="best">{text}</td>' if best else f"<td>{text}</td>" for text, best in row)
        rows.append(_row(results, name, entries))
    return _table([f"{HEADINGS[metric]} at bits per pixel", *results["rates"]], rows)


def _bd_table(results: Mapping[str, Any]) -> str:
    """BD-rates, and the rates between which each curve lies."""
    curves = results["curves"]
    columns = [(anchor, metric) for anchor in ANCHORS if anchor in curves for metric in ("psnr", "ms_ssim")]
    titles = [f"against {display_name(anchor, curves[anchor])} by {metric}" for anchor, metric in columns]
    rows = []
    for name, entry in curves.items():
        values = [entry["bd_rate"].get(anchor, {}).get(metric) for anchor, metric in columns]
        texts = [NO_VALUE if value is None else f"{value:+.1f} %" for value in values]
        texts += [f"{entry['lowest_rate']:.3f}", f"{entry['highest_rate']:.3f}"]
        rows.append(_row(results, name, "".join(f"<td>{text}</td>" for text in texts)))
    return _table(["BD-rate", *titles, "lowest rate", "highest rate"], rows)


def _row(results: Mapping[str, Any], name: str, entries: str) -> str:
    """A curve's row."""
    entry = results["curves"][name]
    return f'<tr class="{entry["kind"]}"><td>{escape(display_name(name, entry))}</td>{entries}</tr>'


def _table(titles: Sequence[str], rows: Sequence[str]) -> str:
    """A table in a box that scrolls where it is too wide."""
    heading = "".join(f"<th>{escape(title)}</th>" for title in titles)
    return f'<div class="card scroll"><table><tr>{heading}</tr>{"".join(rows)}</table></div>\n'


def _figure(number: int, comparison: Comparison) -> str:
    """A picture with its slider."""
    name = escape(comparison.name)
    choices, before, sides = [], [], []
    for choice, shown in enumerate(comparison.before):
        checked, hidden = (" checked", "") if choice == 0 else ("", " hidden")
        choices.append(
            f'<label><input type="radio" name="choice-{number}" value="{choice}"{checked}>'
            f"<span>{escape(shown.label)}</span></label>"
        )
        before.append(_image(shown, f'class="before" data-choice="{choice}"{hidden}'))
        sides.append(f'<div data-side="{choice}"{hidden}>{_caption(shown)}</div>')
    after = comparison.after
    size = f"max-width:{comparison.width}px"
    return f"""<figure class="card" id="picture-{number}">
<h3>{name}</h3>
<fieldset class="choices" aria-label="What to compare {name} with">{"".join(choices)}</fieldset>
<div class="stage" style="{size};aspect-ratio:{comparison.width}/{comparison.height}">
{_image(after, 'class="after"')}
{"".join(before)}
<div class="divider"></div>
<input type="range" min="0" max="100" step="0.5" value="50" aria-label="Divider of {name}">
</div>
<div class="sides" style="{size}"><div>{"".join(sides)}</div><div>{_caption(after)}</div></div>
</figure>
"""


def _image(shown: Shown, attributes: str) -> str:
    """A picture as part of the page."""
    return f'<img {attributes} alt="{escape(shown.label)}" src="{_data_uri(shown.jpeg, "image/jpeg")}">'


def _caption(shown: Shown) -> str:
    """What a side of the slider shows."""
    return f"<b>{escape(shown.label)}</b>{escape(shown.caption)}"
