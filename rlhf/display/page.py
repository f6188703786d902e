"""What every page that rlhf writes has in common (reports of evaluations and of data): the head, the style, the title.

A page is one file: no script, no font, no outside resource. It follows the reader's light or dark theme, and prints.
"""

from __future__ import annotations

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

STYLE = """
:root { color-scheme: light dark; --font: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Helvetica, Arial, sans-serif;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1c2127; --soft: #5d6773; --grid: #e1e4e8; --accent: #2f6fb7; --warn: #9a5b00;
  --warn-paper: #fff6e5; --good: #1d7f5f; --bad: #b93a57; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1b1f25; --ink: #e4e7eb; --soft: #9aa4b0;
  --grid: #313841; --accent: #79b0ee; --warn: #e9b45c; --warn-paper: #2a2418; --good: #4cc79b; --bad: #ee7f98; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 var(--font); }
main { max-width: 1180px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .3rem; padding-top: .9rem; border-top: 1px solid var(--grid); }
h3 { font-size: 1rem; margin: 1.8rem 0 .2rem; }
p { margin: .4rem 0 .8rem; max-width: 74ch; }
.soft, figcaption, caption { color: var(--soft); }
.findings { margin: 1.2rem 0 0; padding: 0; list-style: none; }
.findings li { padding: .55rem .9rem; margin: .4rem 0; background: var(--card); border: 1px solid var(--grid);
  border-left: 3px solid var(--accent); border-radius: 4px; }
.notes { background: var(--warn-paper); border-left: 3px solid var(--warn); border-radius: 4px; padding: .6rem 1rem;
  margin: 1rem 0; list-style: none; } .notes li { margin: .2rem 0; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; background: var(--card); }
th, td { padding: .45rem .7rem; text-align: right; border-bottom: 1px solid var(--grid); vertical-align: top; white-space: nowrap; }
th { font-weight: 600; font-size: .85rem; color: var(--soft); vertical-align: bottom; }
th small { display: block; font-weight: 400; }
th:first-child, td:first-child, .left { text-align: left; }
td small { color: var(--soft); }
td.wrap { white-space: normal; }
.dot { display: inline-block; width: .65em; height: .65em; border-radius: 50%; margin-right: .45em; }
.rate { display: block; font-size: .88em; } .even { color: var(--soft); }
.up { color: var(--good); } .down { color: var(--bad); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1rem; margin: .8rem 0; }
.figures.wide { grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); }
figure { margin: 0; padding: .8rem .9rem .5rem; background: var(--card); border: 1px solid var(--grid); border-radius: 6px;
  break-inside: avoid; }
figcaption { font-weight: 600; font-size: .86rem; color: var(--ink); margin-bottom: .3rem; }
figure svg { display: block; width: 100%; height: auto; }
.sample { background: var(--card); border: 1px solid var(--grid); border-radius: 6px; margin: .9rem 0; break-inside: avoid; }
.sample > header { padding: .6rem .9rem; border-bottom: 1px solid var(--grid); }
.sample .tag { float: right; margin-left: 1rem; font-size: .78rem; color: var(--soft); }
.sample pre, .answers pre { margin: 0; font: inherit; white-space: pre-wrap; overflow-wrap: anywhere; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
.answers > div { padding: .6rem .9rem .7rem; border-left: 1px solid var(--grid); margin-left: -1px; }
.answers h4 { margin: 0 0 .3rem; font-size: .85rem; }
.answers .scores { margin-top: .5rem; font-size: .78rem; color: var(--soft); }
details { margin: .5rem 0; } summary { cursor: pointer; }
details pre { background: var(--card); border: 1px solid var(--grid); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto;
  font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media print { :root { color-scheme: light; --paper: #fff; --card: #fff; --ink: #111; --soft: #555; --grid: #ddd;
  --warn-paper: #fff6e5; --warn: #9a5b00; --good: #1d7f5f; --bad: #b93a57; --accent: #2f6fb7; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } h2, h3 { break-after: avoid; }
  .figures { grid-template-columns: 1fr 1fr; } .scroll { overflow: visible; } th, td { padding: .25rem .4rem; font-size: 8.5pt;
  white-space: normal; } }
"""

HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body><main>
<h1>{{ title }}</h1>
<p class="soft">{{ subtitle }}</p>
"""

ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def page(body: str, style: str = "") -> Template:
    """A jinja template of a whole page; it escapes everything. Render it with `title`, `subtitle` and what `body` names."""
    return ENVIRONMENT.from_string(f"{HEAD}{body}</main></body></html>\n", globals={"style": Markup(STYLE + style)})
