"""A data report as one page, in the look of `rlhf.display.page`: findings where lint was asked, then each split's measures and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from rlhf.data.stats.console import lines, percent
from rlhf.data.stats.drawings import figures
from rlhf.display.page import page

STYLE = """
.finding { padding: .6rem .9rem; margin: .5rem 0; background: var(--card); border: 1px solid var(--grid); border-radius: 4px;
  border-left: 4px solid var(--accent); }
.finding.error { border-left-color: var(--bad); } .finding.warning { border-left-color: var(--warn); }
.finding p { margin: .15rem 0; max-width: none; overflow-wrap: anywhere; }
.finding b { text-transform: uppercase; font-size: .74rem; letter-spacing: .05em; margin-right: .5em; }
.finding.error b { color: var(--bad); } .finding.warning b { color: var(--warn); } .finding.note b { color: var(--accent); }
.measures td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.measures td:first-child { font-weight: 600; white-space: nowrap; width: 1%; }
.place { white-space: normal; overflow-wrap: anywhere; min-width: 14rem; }
"""

TEMPLATE = """\
{% if findings is not none %}
<h2>Findings</h2>
{% for f in findings %}<div class="finding {{ f.severity }}">
<p><b>{{ f.severity }}</b>{{ f.split }}: {{ f.count }} of {{ f.total }} ({{ percent(f.share) }}): {{ f.what }}</p>
{% if f.example %}<p class="soft">at {{ f.example }}</p>{% endif %}
<p class="soft">{{ code(f.advice) }}</p></div>
{% else %}<p>Nothing was found.</p>{% endfor %}
{% endif %}
{% for name, split in report.splits.items() %}
<h2>{{ name }}: {{ split.rows }} rows</h2>
{% if split.lengths %}<div class="scroll"><table>
<thead><tr><th>length in {{ report.unit }}</th><th>count</th><th>mean</th><th>p50</th><th>p95</th><th>p99</th><th>max</th><th class="left">longest at</th></tr></thead>
<tbody>{% for side, d in split.lengths.items() %}<tr><td>{{ "row (prompt + longest)" if side == "row" else side }}</td><td>{{ d.count }}</td><td>{{ "%.1f" | format(d.mean) }}</td><td>{{ d.p50 }}</td><td>{{ d.p95 }}</td><td>{{ d.p99 }}</td><td>{{ d.max }}</td><td class="left place">{{ d.longest }}</td></tr>{% endfor %}</tbody>
</table></div>{% endif %}
<div class="figures wide">{% for caption, svg in figures[name] %}<figure><figcaption>{{ caption }}</figcaption>{{ svg }}</figure>
{% endfor %}</div>
<div class="scroll"><table class="measures"><tbody>
{% for label, value in lines[name] %}<tr><td>{{ label }}</td><td>{{ value }}</td></tr>{% endfor %}
</tbody></table></div>
{% endfor %}
{% if report.leakage %}<h2>Prompts on both sides</h2>
<div class="scroll"><table><thead><tr><th>splits</th><th>prompts</th><th>rows</th><th>share</th><th class="left">such as</th></tr></thead>
<tbody>{% for pair, leak in report.leakage.items() %}<tr><td>{{ pair }}</td><td>{{ leak.prompts }}</td><td>{{ leak.rows }}</td><td>{{ percent(leak.share) }}</td>
<td class="left place">{% for a, b in leak.examples %}{{ b }} = {{ a }}<br>{% endfor %}</td></tr>{% endfor %}</tbody></table></div>{% endif %}
<p class="soft">Percentiles are nearest rank. Intervals are 95% (Wilson), and count pairs of one ranking as if they were independent.
Prompts are compared without case and white space; near-duplicates are not looked for here.</p>
"""

PAGE = page(TEMPLATE, STYLE)


def render(report: Mapping[str, Any]) -> str:
    """The page of a report of `measure`; with lint's findings where the report has them."""
    unit, limit = report["unit"], report["max_length"]
    whose = f" of {report['tokenizer']}" if report["tokenizer"] else ""
    method = f", as {report['method']} trains on it" if report["method"] else ""
    return PAGE.render(
        title=f"Data: {report['target']}",
        subtitle=f"lengths in {unit}{whose}{method}",
        report=report,
        findings=report.get("findings"),
        figures={name: list(figures(split, unit, limit)) for name, split in report["splits"].items()},
        lines={name: list(lines(split, unit)) for name, split in report["splits"].items()},
        percent=percent,
        code=_code,
    )


def _code(text: str) -> Markup:
    """Text with what stands between backticks as code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else p for i, p in enumerate(parts))
