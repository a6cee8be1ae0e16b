"""The HTML page of a report, and its charts as PNG files.

The page embeds its pictures and fetches nothing; it has no script, follows the reader's light or
dark setting and fits a phone.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from matplotlib.figure import Figure

from prefmix.weights.report import plots
from prefmix.weights.store.durable_file import replace_file

PAGE = "report.html"

_TEMPLATE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root {
  color-scheme: light dark;
  --paper: #fff; --back: #f4f5f7; --ink: #1f2328; --quiet: #59636e; --line: #d5d9de;
  --good: #1a7f37; --careful: #9a6700; $light
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #1b1f24; --back: #101317; --ink: #e6e8eb; --quiet: #9aa4af; --line: #3d444d;
    --good: #4ac26b; --careful: #e3b341; $dark
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
main { max-width: 1000px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0 1rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.verdict {
  border-left: .3rem solid; padding: .6rem .9rem; background: var(--paper); font-weight: 600;
}
.good { border-color: var(--good); }
.careful { border-color: var(--careful); }
.wide { overflow-x: auto; margin: .8rem 0; }
table {
  border-collapse: collapse; background: var(--paper); font-variant-numeric: tabular-nums;
  font-size: .92rem;
}
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
th { font-weight: 600; }
tr:first-child th { color: var(--quiet); font-weight: 500; }
.weights, .pairs { width: 100%; }
.weights td:not(.bar), .weights tr:first-child th:not(:first-child),
.numbers td, .numbers th { text-align: right; overflow-wrap: normal; white-space: nowrap; }
.weights th:first-child { min-width: 5rem; }
.pairs th { width: 38%; font-weight: 400; color: var(--quiet); vertical-align: top; }
.bar { width: 30%; min-width: 4rem; }
.bar i { display: block; height: .7rem; min-width: 1px; }
.charts {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
}
figure { margin: 0; padding: .7rem; background: var(--paper); border: 1px solid var(--line); }
img { display: block; width: 100%; max-width: 480px; height: auto; margin: 0 auto; }
figcaption { color: var(--quiet); font-size: .88rem; margin-top: .5rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="verdict $tone">$verdict</p>
$body
</main>
</body>
</html>
""")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart and its caption, which says what a reader should see in it."""

    file: str
    """Name of the PNG file."""
    draw: Callable[[plots.Theme], Figure]
    caption: str


def page(title: str, verdict: str, body: str, *, is_good: bool) -> str:
    """The whole page.

    Args:
      title, verdict: plain text.
      body: HTML that follows the verdict.
      is_good: colour of the verdict: green if true, amber if false.
    """
    return _TEMPLATE.substitute(
        title=escape(title),
        light=_colours(plots.LIGHT),
        dark=_colours(plots.DARK),
        tone="good" if is_good else "careful",
        verdict=escape(verdict),
        body=body,
    )


def write_charts(folder: Path, charts: Iterable[Chart]) -> str:
    """Writes the PNG files, for a light page; returns all charts as HTML."""
    pictures = []
    for chart in charts:
        light, dark = (plots.png(chart.draw(theme)) for theme in (plots.LIGHT, plots.DARK))
        replace_file(folder / chart.file, light)
        pictures.append(_picture(chart.caption, light, dark))
    inside = "\n".join(pictures)
    return f'<section class="charts">\n{inside}\n</section>'


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """A table of plain text, with the names in the first column."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    kind = "numbers" if numbers else "pairs"
    return scrolling(f'<table class="{kind}"><tr>{head}</tr>{body}</table>')


def scrolling(table: str) -> str:
    """The table in a frame that scrolls if the table is wider than the page."""
    return f'<div class="wide">{table}</div>'


def provenance(values: Mapping[str, Any]) -> str:
    """The last part of a page: settings and origins, nested mappings with dotted names."""
    rows = table(["setting", "value"], list(_flat(values)))
    return f"<h2>Settings and provenance</h2>\n{rows}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(map(str, value))
        else:
            yield name, "-" if value is None else str(value)


def _colours(theme: plots.Theme) -> str:
    """The policies' colours of the charts as CSS variables, for the bars of the page."""
    return " ".join(f"--policy-{index}: {colour};" for index, colour in enumerate(theme.palette))


def _picture(caption: str, light: bytes, dark: bytes) -> str:
    """A chart in both themes; the browser chooses by the reader's setting."""
    text = escape(caption.strip())
    return (
        "<figure><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">'
        f'<img src="{_data(light)}" alt="{text}"></picture>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _data(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
