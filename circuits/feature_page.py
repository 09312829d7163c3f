"""A page of features: one HTML file that needs nothing else, neither scripts nor the network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from interventions.dictionaries.measures.profiles import Context
from interventions.writing import write

from .annotations import visible
from .portrait import Neighbour, Portrait

_STYLE = """
:root { color-scheme: light dark; --paper: #fdfcf9; --ink: #22241f; --soft: #696b62; --line: #dedcd2;
  --card: #ffffff; --glow: 226 110 14; --cold: 38 112 196; --full: .72; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --ink: #e6e5df; --soft: #9a9b95;
  --line: #34363a; --card: #1f2124; --glow: 240 132 36; --cold: 84 156 240; --full: .6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .18em; }
a:hover { text-decoration-color: rgb(var(--glow)); }
h1 { font-size: 1.3rem; margin: 0; font-weight: 650; }
h2 { font: 650 1.15rem/1.3 ui-monospace, "SF Mono", Menlo, Consolas, monospace; margin: 0; }
h3 { font-size: .8rem; font-weight: 650; color: var(--soft); margin: 1.5rem 0 .5rem; }
.about { color: var(--soft); margin: .25rem 0 1rem; }
nav { display: flex; flex-wrap: wrap; gap: .35rem; margin: 1rem 0 2rem; }
nav a { padding: .1rem .5rem; border: 1px solid var(--line); border-radius: 4px; text-decoration: none;
  background: var(--card); font: .8rem/1.6 ui-monospace, Menlo, Consolas, monospace; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 1.25rem 1.5rem 1.5rem; margin: 1.25rem 0; scroll-margin-top: 1rem; }
.top { display: flex; flex-wrap: wrap; align-items: flex-end; justify-content: space-between;
  gap: 1rem 2rem; }
dl { display: flex; flex-wrap: wrap; gap: .25rem 1.75rem; margin: .75rem 0 0; }
dt { color: var(--soft); font-size: .78rem; } dd { margin: 0; font-variant-numeric: tabular-nums; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .72rem; text-align: right; }
svg { display: block; margin-left: auto; } svg rect { fill: rgb(var(--glow)); }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 0 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .88rem; }
td { padding: .06rem 0; vertical-align: baseline; }
td.n { text-align: right; padding-left: .75rem; width: 3.75rem; }
td.t { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
th { font-weight: 400; text-align: right; color: var(--soft); font-size: .75rem; padding-left: .75rem; }
th:first-child { text-align: left; padding: 0; }
td.b { width: 32%; vertical-align: middle; }
i { display: block; height: 5px; border-radius: 2px; width: calc(var(--w) * 100%); margin-left: auto; }
i.up { background: rgb(var(--glow)); } i.down { background: rgb(var(--cold)); }
ol { list-style: none; margin: 0; padding: 0; }
li { display: grid; grid-template-columns: 3.6rem 1fr; gap: .75rem; padding: .38rem 0;
  border-top: 1px solid var(--line); }
li:first-child { border-top: 0; }
li b { font-weight: 400; color: var(--soft); text-align: right; font-variant-numeric: tabular-nums;
  font-size: .82rem; line-height: 1.85; }
p.text { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.75;
  font: .88rem/1.75 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
p.text s { text-decoration: none; border-radius: 3px; padding: .1em 0;
  background: rgb(var(--glow) / calc(var(--a) * var(--full))); }
p.text s.less { background: rgb(var(--cold) / calc(var(--a) * var(--full))); }
p.text s.peak { box-shadow: 0 2px 0 rgb(var(--glow)); }
p.text s.less.peak { box-shadow: 0 2px 0 rgb(var(--cold)); }
.none { color: var(--soft); margin: 0; }
footer { color: var(--soft); font-size: .8rem; margin-top: 2rem; }
@media (max-width: 32rem) { article { padding: 1rem; } li { grid-template-columns: 1fr; gap: 0; }
  li b { text-align: left; } }
@media print { body { max-width: none; } article { break-inside: avoid-page; } nav { display: none; } }
"""
# Should any text get past the escaping, the browser still runs nothing and fetches nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def save_page(path: str | Path, portraits: Sequence[Portrait], *, title: str, about: str = "") -> Path:
    """Writes a page of features; see `page`."""
    path = Path(path)
    write(path, page(portraits, title=title, about=about).encode())
    return path


def page(portraits: Sequence[Portrait], *, title: str, about: str = "") -> str:
    """The HTML of a page of features.

    A token's background says how active the feature is there, and hovering over it gives the value.
    Everything that is from a model, a text or a file is escaped.
    """
    shown = {portrait.name for portrait in portraits}
    links = "".join(f'<a href="#{_anchor(p.name)}">{_text(p.name)}</a>' for p in portraits)
    body = "\n".join(_article(portrait, shown) for portrait in portraits)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{_text(title)}</h1><p class="about">{_text(about)}</p></header>
{f"<nav>{links}</nav>" if len(portraits) > 1 else ""}
<main>
{body}
</main>
<footer>Shading is the activation over the largest of the feature. Hover over a token for its value.
Changes of logits are those of the direct path, less their mean over the vocabulary.</footer>
</body>
</html>
"""


def _article(portrait: Portrait, shown: set[str]) -> str:
    facts = {
        "active at": f"{_share(portrait.density)} of {portrait.positions:,} positions",
        "mean there": f"{portrait.mean:.3g}",
        "largest": f"{portrait.largest:.3g}",
        "decoder norm": f"{portrait.norm:.3g}",
    }
    entries = "".join(f"<div><dt>{name}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items())
    columns = []
    if portrait.raised is not None and portrait.lowered is not None:
        columns.append(f"<section><h3>Raises</h3>{_tokens(portrait.raised, 'up')}</section>")
        columns.append(f"<section><h3>Lowers</h3>{_tokens(portrait.lowered, 'down')}</section>")
    columns.append(
        f"<section><h3>Nearest features</h3>{_neighbours(portrait, portrait.nearest, shown)}</section>"
    )
    drawn = ""
    if portrait.drawn:
        drawn = f"<h3>Where it is active, at random</h3>{_contexts(portrait.drawn, portrait.largest)}"
    return f"""<article id="{_anchor(portrait.name)}">
<div class="top"><div><h2>{_text(portrait.name)}</h2><dl>{entries}</dl></div>{_histogram(portrait)}</div>
<div class="columns">{"".join(columns)}</div>
<h3>Where it is most active</h3>
{_contexts(portrait.strongest, portrait.largest)}
{drawn}
</article>"""


def _histogram(portrait: Portrait) -> str:
    most = max(portrait.histogram, default=0)
    if not most:
        return ""
    width, height = 7, 44
    bars = []
    for at, count in enumerate(portrait.histogram):
        if count:  # heights by roots, so that the few strong activations are seen beside the many weak ones
            tall = max(1.0, height * (count / most) ** 0.5)
            bars.append(
                f'<rect x="{at * width}" y="{height - tall:.1f}" width="{width - 1}" height="{tall:.1f}">'
                f"<title>{count:,}</title></rect>"
            )
    wide = width * len(portrait.histogram)
    return (
        f'<figure><svg width="{wide}" height="{height}" viewBox="0 0 {wide} {height}" role="img" '
        f'aria-label="How often the feature has which value">{"".join(bars)}</svg>'
        f"<figcaption>values, 0 to {portrait.largest:.3g}; roots of counts</figcaption></figure>"
    )


def _contexts(contexts: Sequence[Context], largest: float) -> str:
    if not contexts:
        return '<p class="none">Nowhere in this text.</p>'
    lines = []
    for context in contexts:
        spans = "".join(
            _span(token, value, largest, at == context.at)
            for at, (token, value) in enumerate(zip(context.tokens, context.values, strict=True))
        )
        lines.append(f'<li><b>{context.value:.3g}</b><p class="text">{spans}</p></li>')
    return f"<ol>{''.join(lines)}</ol>"


def _span(token: str, value: float, largest: float, peak: bool) -> str:
    space = " " if token[:1] == " " and len(token) > 1 else ""  # outside the mark, where lines may break
    text = _text(token.removeprefix(space))
    if not value:
        return space + text
    text = text or "&#8709;"
    kinds = " ".join([*(["less"] if value < 0 else []), *(["peak"] if peak else [])])
    kinds = f' class="{kinds}"' if kinds else ""
    return f'{space}<s{kinds} style="--a:{abs(value) / (largest or 1):.2f}" title="{value:.3g}">{text}</s>'


def _tokens(changes: Sequence[tuple[str, float]], way: str) -> str:
    most = max((abs(value) for _, value in changes), default=0.0) or 1.0
    rows = "".join(
        f'<tr><td class="t">{_text(token.replace(" ", "·")) or "&#8709;"}</td>'
        f'<td class="b"><i class="{way}" style="--w:{abs(value) / most:.2f}"></i></td>'
        f'<td class="n">{value:+.2f}</td></tr>'
        for token, value in changes
    )
    return f"<table>{rows}</table>"


def _neighbours(portrait: Portrait, nearest: Sequence[Neighbour], shown: set[str]) -> str:
    rows = []
    for near in nearest:
        name = f"{portrait.site}/{near.feature}"
        label = _text(name)
        label = f'<a href="#{_anchor(name)}">{label}</a>' if name in shown else label
        rows.append(
            f'<tr><td class="t">{label}</td><td class="n">{_cosine(near.decoder)}</td>'
            f'<td class="n">{_cosine(near.encoder)}</td></tr>'
        )
    return f"<table><tr><th>cosine of</th><th>decoder</th><th>encoder</th></tr>{''.join(rows)}</table>"


def _cosine(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def _share(share: float) -> str:
    return "0" if not share else f"{share:.1%}" if share >= 0.001 else f"{share:.2g}"


def _anchor(name: str) -> str:
    return html.escape("f-" + "".join(c if c.isalnum() else "-" for c in name))


def _text(text: str) -> str:
    """Text as it may stand in HTML, also in attributes; nothing in it turns the direction of writing."""
    return html.escape(visible(text), quote=True)
