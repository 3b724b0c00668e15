"""The style of the pages: one column, two grids, six colours for every kind of colour vision."""

from __future__ import annotations

from html import escape

# The page loads and runs nothing, whatever a name contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# Characters that change the direction of the text around them, or that HTML does not allow, become visible.
_INVISIBLE = [*range(9), 11, 12, *range(14, 32), 127, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_VISIBLE = {code: f"[U+{code:04X}]" for code in _INVISIBLE}

# The colours are Okabe and Ito's (2008), darkened on white and lightened on black until thin lines keep a contrast of
# three to one.
_STYLE = """
:root { color-scheme: light dark; --back: #fff; --card: #f6f7f9; --text: #1b1f24; --soft: #5d666f; --line: #d8dce1;
  --warn: #fff3d6; --c0: #0072b2; --c1: #d55e00; --c2: #00805c; --c3: #b1528a; --c4: #94700b;
  --c5: #3d7fb5; --heat: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --card: #1d2126; --text: #e7eaee; --soft: #9ea8b3;
  --line: #39404a; --warn: #3d3216; --c0: #56b4e9; --c1: #ff8f52; --c2: #2fc79a; --c3: #e39ac4;
  --c4: #f0c04a; --c5: #b3d9f5; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; max-width: 64rem; margin: 0 auto;
  padding: 1.5rem 1rem 3rem; background: var(--back); color: var(--text); overflow-wrap: break-word;
  -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; padding-top: .7rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; } p { margin: .4rem 0; max-width: 44rem; }
.soft { color: var(--soft); } .warn { background: var(--warn); border-radius: 8px; padding: .6rem 1rem; }
.warn ul { margin: .2rem 0; padding-left: 1.2rem; overflow-wrap: anywhere; } b { font-weight: 600; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.fact { background: var(--card); border-radius: 10px; padding: .6rem .9rem; }
.fact span { color: var(--soft); font-size: .85rem; display: block; } .fact b { font-size: 1.55rem; line-height: 1.2;
  font-variant-numeric: tabular-nums; } .fact small { color: var(--soft); display: block; font-size: .8rem;
  font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); gap: 1.4rem; }
figure { margin: 0; min-width: 0; } figure > figcaption { font-weight: 600; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; } .axis { stroke: var(--soft); }
.rule { stroke: var(--line); stroke-width: .6; }
.mark { stroke: var(--soft); stroke-width: .8; stroke-dasharray: 2 3; }
svg text.stage { paint-order: stroke; stroke: var(--back); stroke-width: 3px; }
ul.legend { list-style: none; margin: .1rem 0 .4rem; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem 1rem;
  font-size: .85rem; } .legend b, td.number { font-variant-numeric: tabular-nums; }
svg.sample { display: inline-block; width: 24px; height: 10px; margin-right: .35rem; }
.block { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .4rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 44%), 1fr)); gap: 1.1rem .9rem; }
.tiles img { width: 100%; height: auto; display: block; border-radius: 6px; background: var(--card); }
.tiles figcaption { font-weight: 400; font-size: .8rem; line-height: 1.35; padding-top: .25rem;
  overflow-wrap: anywhere; } .tiles figcaption b { font-size: .95rem; font-variant-numeric: tabular-nums; }
.tiles.small { grid-template-columns: repeat(auto-fill, minmax(min(11rem, 44%), 1fr)); margin-bottom: 1.4rem; }
.tiles.sheets { grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); }
.tiles.sheets img { background: none; border-radius: 0; image-rendering: pixelated; }
.outline { display: inline-block; width: 1.7rem; height: 0; border-top: 4px solid; vertical-align: middle;
  margin-right: .4rem; outline: 1px solid #0008; }
.outline.dashed { border-top-style: dashed; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; margin: .4rem 0; }
td, th { border-bottom: 1px solid var(--line); padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; } thead th, tr.head th { color: var(--soft); font-weight: 500; font-size: .85rem;
  vertical-align: bottom; } td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
td.best { font-weight: 700; } table.what { width: 100%; } table.what th { color: var(--soft); font-weight: 500;
  white-space: nowrap; width: 1%; } table.what td, table.beside td { overflow-wrap: anywhere; }
table.confusion td, table.confusion th { border: 0; padding: .2rem .4rem; }
table.confusion th[scope=col] { vertical-align: bottom; text-align: center; font-weight: 500; }
table.confusion th[scope=col] span { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  white-space: nowrap; } table.confusion th[scope=row] { text-align: right; font-weight: 500; vertical-align: middle; }
table.confusion td { text-align: center; min-width: 2.7rem; height: 2.5rem; vertical-align: middle;
  font-variant-numeric: tabular-nums; border: 2px solid var(--back);
  background: color-mix(in srgb, var(--heat) var(--share), var(--card)); }
table.confusion td.full { color: #fff; } table.confusion td[data-right] { outline: 1.5px solid var(--soft);
  outline-offset: -3px; } table.confusion td i { color: var(--soft); font-style: normal; }
table.confusion td.corner { background: none; color: var(--soft); font-size: .8rem; text-align: right;
  vertical-align: bottom; white-space: nowrap; border: 0; }
.bar { display: flex; height: 1.4rem; border-radius: 6px; overflow: hidden; margin: .6rem 0; }
.bar span { flex-basis: 0; } details { margin: .5rem 0; } summary { cursor: pointer; color: var(--soft); }
pre { overflow-x: auto; font-size: .82rem; background: var(--card); border-radius: 8px; padding: .8rem 1rem; }
@media (max-width: 30rem) { td, th { padding-right: .35rem; } table { font-size: .78rem; }
  thead th { font-size: .68rem; line-height: 1.2; }
  table.confusion td, table.confusion th { padding: .15rem .25rem; } table.confusion td { min-width: 2.1rem; }
  table.what th { white-space: normal; } .tiles.small { grid-template-columns: repeat(3, 1fr); gap: .6rem .5rem; } }
@media print { :root { --back: #fff; --card: #f6f7f9; --text: #000; --soft: #444; --line: #bbb; }
  body { font-size: 10pt; max-width: none; padding: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  figure, tr, .fact, table.confusion { break-inside: avoid; } h2, h3, p:has(+ .wide) { break-after: avoid; }
  .wide { overflow: visible; } details.recipe { display: none; }
  pre { white-space: pre-wrap; } .tiles { grid-template-columns: repeat(3, 1fr); }
  .tiles.small { grid-template-columns: repeat(4, 1fr); }
  details::details-content { content-visibility: visible; block-size: auto; } }
"""


def page(title: str, parts: list[str], problems: list[str]) -> str:
    """The whole document, with `problems` below its first part."""
    said = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    warning = f"<div class=warn><b>Missing from this page</b><ul>{said}</ul></div>" if problems else ""
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join([parts[0], warning, *parts[1:]])
    text = f"<!doctype html>\n<html lang=en><head>{head}</head><body>\n{body}\n</body></html>\n"
    # A file name may contain bytes that are not UTF-8.
    return text.translate(_VISIBLE).encode("utf-8", "replace").decode()
