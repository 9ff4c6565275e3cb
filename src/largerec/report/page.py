"""The page around the charts: its style, its tables, its numbers. Everything that comes from a log passes through :func:`text`.

The file asks for nothing outside itself, and its Content-Security-Policy forbids it to: no script, no fonts, no pictures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape, unescape
from typing import Any

from largerec.report.charts import colour_class

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
LONGEST = 160  # letters of a title

STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --rule: #d5dae0; --grid: #e8ebef; --paper: #fff; --panel: #f6f7f9;
  --warn: #8a5a00; --warn-paper: #fff7e0; --good: #17713a;
  --c0: #1f5fbf; --c1: #c8501e; --c2: #1c8a6a; --c3: #8a4bb0; --c4: #a8871a; --c5: #6b7480 }
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; --ink: #e4e7eb; --soft: #a0a8b2; --rule: #3a424c;
  --grid: #2a3038; --paper: #14171b; --panel: #1c2127; --warn: #f0c060; --warn-paper: #2c2412; --good: #6fd08f;
  --c0: #7db0ff; --c1: #ff9a66; --c2: #5fd3ac; --c3: #cf9cf0; --c4: #e3c65a; --c5: #9aa4b0 } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100% }
body { margin: 0 auto; max-width: 1120px; padding: 1.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
  overflow-wrap: break-word }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--rule) }
.part { font-size: 1.5rem; border-top: 3px solid var(--rule) }
h3 { font-size: 1rem; margin: 1.5rem 0 .35rem; overflow-wrap: anywhere }
p { margin: .5rem 0; max-width: 72ch }
a { color: var(--c0) }
.soft, figcaption p, .note { color: var(--soft); font-size: .9rem }
.lead { font-size: 1.06rem }
nav { margin: .6rem 0 0; font-size: .9rem; line-height: 1.9 }
nav a { margin-right: .9rem; white-space: nowrap; text-decoration: none }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .75rem; margin: 1.1rem 0 }
.card { background: var(--panel); border-radius: 8px; padding: .7rem .9rem; min-width: 0 }
.card b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums }
.card span { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere }
.warnings { background: var(--warn-paper); border-left: 3px solid var(--warn); border-radius: 4px;
  padding: .6rem 1rem; margin: 1rem 0 }
.warnings ul { margin: .2rem 0; padding-left: 1.1rem }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 1.5rem 2rem;
  margin: 1rem 0 }
figure { margin: 0; min-width: 0; max-width: 460px; display: flex; flex-direction: column }
figcaption { font-weight: 600; font-size: .95rem }
figcaption p { font-weight: 400; margin: .1rem 0 .3rem }
svg { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; overflow: visible }
svg text { fill: var(--soft); font-variant-numeric: tabular-nums }
.chart { display: block; width: 100%; height: auto; margin-top: auto }
.strip { display: inline-block; width: 200px; height: auto; vertical-align: middle }
.grid { stroke: var(--grid); fill: none } .axis { stroke: var(--soft); fill: none }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round } .thick { fill: none; stroke-width: 3; opacity: .55 }
.guide { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3 }
.bar, .dot { stroke: none }
.c0 { stroke: var(--c0); fill: var(--c0) } .c1 { stroke: var(--c1); fill: var(--c1) } .c2 { stroke: var(--c2); fill: var(--c2) }
.c3 { stroke: var(--c3); fill: var(--c3) } .c4 { stroke: var(--c4); fill: var(--c4) } .c5 { stroke: var(--c5); fill: var(--c5) }
.band { stroke: none; opacity: .16 } .dot.hollow { fill: var(--paper); stroke-width: 1.6 }
.line.d1 { stroke-dasharray: 6 3 } .line.d2 { stroke-dasharray: 2 2 } path.line, polyline.line, .thick { fill: none }
.legend { margin: .1rem 0 .2rem; font-size: .85rem; font-weight: 400; color: var(--soft) }
.legend span { margin-right: .9rem; display: inline-block }
.key { width: 14px; height: 10px; margin-right: .35rem; vertical-align: -.02em }
.scroll { overflow-x: auto; margin: .6rem 0; max-width: 100% }
table { border-collapse: separate; border-spacing: 0; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { padding: .32rem .8rem .32rem 0; text-align: left; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--grid) }
thead th { border-bottom: 1px solid var(--rule); font-weight: 600; vertical-align: bottom }
tfoot td { border: 0; padding-top: 0 }
th.n, td.n { text-align: right; padding-left: .4rem }
th[scope=row] { font-weight: 400 }
tr.main th, tr.main td { font-weight: 600 }
td small, .interval { color: var(--soft); font-weight: 400; font-size: .88em; white-space: nowrap }
.words td { white-space: normal; overflow-wrap: anywhere; min-width: 9rem }
.share { display: block; width: 120px; height: 10px; margin-top: .45em; border-radius: 2px; background: var(--grid) }
.share i { display: block; height: 10px; border-radius: 2px; background: var(--c0) }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 1rem 2.5rem }
.beside > div { min-width: 0 }
.example { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: .25rem 2rem }
.example div { min-width: 0 }
.example h4 { margin: .4rem 0 .1rem; font-size: .85rem; color: var(--soft); font-weight: 600 }
ol, ul.plain { margin: 0; padding-left: 1.9rem; font-size: .94rem; overflow-wrap: anywhere }
ul.plain { padding-left: 1.1rem } li { margin: .1rem 0 }
li small, p small { color: var(--soft); font-weight: 400; white-space: nowrap }
.hit { color: var(--good); font-weight: 600 }
pre { background: var(--panel); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.45 }
code { font-size: .92em; overflow-wrap: anywhere } pre code { overflow-wrap: normal; font-size: 1em }
summary { cursor: pointer; color: var(--c0); margin: .6rem 0 } footer { margin-top: 3rem }
@media (max-width: 560px) { body { padding: 1rem 1rem 3rem } h1 { font-size: 1.4rem } .cards { grid-template-columns: 1fr 1fr }
  th[scope=row] { white-space: normal; max-width: 9.5rem; min-width: 7rem; position: sticky; left: 0; background: var(--paper) } }
@media print { @page { margin: 14mm } body { max-width: none; padding: 0; font-size: 10pt; line-height: 1.4 }
  nav, summary { display: none } details::details-content { content-visibility: visible; block-size: auto }
  .charts { grid-template-columns: 1fr 1fr } .cards { grid-template-columns: repeat(5, 1fr) }
  .beside, .example { grid-template-columns: 1fr 1fr } .card b { font-size: 14pt } .scroll, pre { overflow: visible }
  pre { white-space: pre-wrap } table { font-size: 8.5pt } .strip { width: 130px } td, th { padding-right: .5rem }
  .bar, .dot, .share, .share i, .card, .warnings { print-color-adjust: exact; -webkit-print-color-adjust: exact }
  figure, tr, .card, .warnings, article { break-inside: avoid } h2, h3 { break-after: avoid } h2 { margin-top: 1.4rem } }
"""


def text(value: Any) -> str:
    """Anything from a log as safe markup: escaped, cut where it is endless, kept from turning the direction of its neighbours."""
    plain = str(value)
    return f"<bdi>{escape(plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + '…')}</bdi>"


def plain(markup: str) -> str:
    """The words of markup that this package made."""
    return unescape(re.sub(r"<[^>]*>", "", markup))


def number(value: float | None) -> str:
    """A metric as the house writes it: .0539, -.0012."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:,.4f}"


def signed(value: float) -> str:
    return ("+" if value >= 0 else "") + number(value)


def p_value(value: float) -> str:
    return "p < .001" if value < 0.001 else f"p = {value:.3f}".replace("0.", ".", 1)


def share(part: float, whole: float) -> str:
    """A share in percent, with one decimal where it is small."""
    value = 100 * part / whole if whole else 0.0
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %"


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """Markup of a metric and, in grey, its interval."""
    if interval is None or value is None:
        return number(value)
    return f'{number(value)} <span class="interval">[{number(interval[0])}, {number(interval[1])}]</span>'


def key(colour: int | None) -> str:
    """The swatch of a series."""
    return (
        f'<svg class="key" viewBox="0 0 14 10" aria-hidden="true">'
        f'<path class="line {colour_class(colour)}" style="stroke-width:3" d="M0 5H14"/></svg>'
    )


def legend(names: Sequence[tuple[str, int | None]]) -> str:
    return f'<div class="legend">{"".join(f"<span>{key(colour)}{text(name)}</span>" for name, colour in names)}</div>'


def figure(title: str, chart: str, note: str = "", names: Sequence[tuple[str, int | None]] = ()) -> str:
    """A chart with its title, a sentence about it and a legend; ``title`` and ``note`` are markup."""
    said = f"<p>{note}</p>" if note else ""
    return f"<figure><figcaption>{title}{said}{legend(names) if names else ''}</figcaption>{chart}</figure>"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: Sequence[int] = (),
    main: Sequence[int] = (),
    foot: Sequence[str] = (),
    label: str,
    kind: str = "",
) -> str:
    """A table of markup that scrolls sideways where it is too wide. Columns are numbers but for the first and ``words``."""

    def cell(tag: str, at: int, content: str) -> str:
        if at == 0:
            return f'<th scope="{"row" if tag == "td" else "col"}">{content}</th>'
        plain, scope = "" if at in words else ' class="n"', ' scope="col"' if tag == "th" else ""
        return f"<{tag}{plain}{scope}>{content}</{tag}>"

    body = []
    for number_, row in enumerate(rows):
        mark = ' class="main"' if number_ in main else ""
        body.append(f"<tr{mark}>{''.join(cell('td', at, content) for at, content in enumerate(row))}</tr>")
    top = f"<thead><tr>{''.join(cell('th', at, content) for at, content in enumerate(head))}</tr></thead>" if head else ""
    end = f"<tfoot><tr>{''.join(f'<td>{content}</td>' for content in foot)}</tr></tfoot>" if foot else ""
    opening = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table class="{kind}">'
    return f"{opening}{top}<tbody>{''.join(body)}</tbody>{end}</table></div>"


def section(anchor: str, title: str, content: str) -> str:
    return f'<section><h2 id="{anchor}">{title}</h2>{content}</section>'


def details(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>{content}</details>"


def document(title: str, head: str, parts: Sequence[tuple[str, Sequence[tuple[str, str, str]]]], foot: str) -> str:
    """The whole file. ``title`` is plain text; a part is its name (or nothing) and sections of anchor, title and markup."""
    contents = body = ""
    for name, sections in parts:
        links = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, _ in sections)
        contents += f"<div>{name} {links}</div>"
        body += (f'<h2 class="part">{name}</h2>' if name else "") + "".join(section(*one) for one in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">\n'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n'
        f'<body><header><h1>{text(title)}</h1>{head}<nav aria-label="Contents">{contents}</nav></header>\n'
        f"<main>{body}</main>\n<footer class=note>{foot}</footer></body></html>\n"
    )
