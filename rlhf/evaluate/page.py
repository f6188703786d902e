"""The report's page: a template in the look of `rlhf.display.page`."""

from __future__ import annotations

from rlhf.display.page import page

TEMPLATE = """\
{%- macro dot(name) -%}<span class="dot" style="background: {{ tint[name] }}"></span>{{ name }}{%- endmacro -%}
{%- macro figures(list, wide=false) -%}
<div class="figures{{ ' wide' if wide }}">
{% for title, svg in list %}<figure><figcaption>{{ title }}</figcaption>{{ svg }}</figure>
{% endfor %}</div>
{%- endmacro -%}
{% if report.findings %}<ul class="findings">{% for line in report.findings %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% if report.notes %}<ul class="notes">{% for note in report.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}

<h2>Summary</h2>
<div class="scroll"><table>
<thead><tr><th>model</th>
{% for name in report.scorers %}<th>{{ name }}<small>mean{% if compared %}; wins vs {{ reference }}{% endif %}</small></th>{% endfor %}
{% for name in report.pair_judges if compared %}<th>{{ name }}<small>wins vs {{ reference }}</small></th>{% endfor %}
<th>KL<small>nats</small></th><th>length<small>tokens</small></th><th>EOS rate<small>ends by itself</small></th></tr></thead>
<tbody>{% for m in models %}<tr><td><strong>{{ dot(m.name) }}</strong>{% if m.reference and compared %} <small>reference</small>{% endif %}</td>
{% for name in report.scorers %}<td>{{ plus_minus(m.scores[name].mean) }}{{ rate(m.scores[name].win_rate) }}</td>{% endfor %}
{% for name in report.pair_judges if compared %}<td>{{ rate(m.pair_judges[name].win_rate) if m.pair_judges else "–" }}</td>{% endfor %}
<td>{{ plus_minus(m.kl) }}</td><td>{{ plus_minus(m.length.mean) }}</td><td>{{ percent(m.eos_rate) }}</td></tr>{% endfor %}</tbody>
</table></div>
<p class="soft">± and [ ] are 95% intervals over prompts: Student's t for means, Wilson's for shares; a tie is half a win.
{% if compared %}KL is the mean of log π(y) − log π<sub>ref</sub>(y) over each model's own samples, at their temperature.{% endif %}</p>
{% if overview %}{{ figures(overview, true) }}{% endif %}

<h2>Signs of reward hacking</h2>
<div class="scroll"><table>
<thead><tr><th>model</th><th>length<small>median</small></th><th>length<small>95th percentile</small></th><th>length<small>longest</small></th>
<th>distinct-1</th><th>distinct-2</th><th>repeated 4-grams</th></tr></thead>
<tbody>{% for m in models %}<tr><td><strong>{{ dot(m.name) }}</strong></td><td>{{ number(m.length.median) }}</td><td>{{ number(m.length.p95) }}</td><td>{{ number(m.length.max) }}</td>
<td>{{ number(m.distinct_1) }}</td><td>{{ number(m.distinct_2) }}</td><td>{{ number(m.repetition) }}</td></tr>{% endfor %}</tbody>
</table></div>
<p class="soft">A policy that exploits its reward writes longer, repeats itself, or says the same to every prompt. Look for a lower
distinct-n and more repetition than {{ reference }} has. Distinct-n is also lower when there is more text.</p>

{% if report.pair_judges and compared %}
<h2>Pair judges</h2>
<div class="scroll"><table>
<thead><tr><th>judge</th><th class="left">model</th><th>wins<small>mean of both orders</small></th><th>ties</th><th>flips<small>with the order</small></th><th>first shown wins<small>50% without bias</small></th></tr></thead>
<tbody>{% for name in report.pair_judges %}{% for m in models if m.pair_judges %}{% set v = m.pair_judges[name] %}<tr><td>{{ name }}</td><td class="left">{{ dot(m.name) }}</td><td>{{ percent(v.win_rate) }}</td><td>{{ "%.0f%%" | format(100 * v.ties) }}</td><td>{{ percent(v.flip_rate) }}</td><td>{{ "%.0f%%" | format(100 * v.first_place_wins) }}</td></tr>{% endfor %}{% endfor %}</tbody>
</table></div>
<p class="soft">Each pair is asked in both orders. The verdict is the mean of both answers: an answer that changes with the
order counts as a tie.</p>
{% endif %}

<h2>Held-out preferences</h2>
{% if preferences_table %}<div class="scroll"><table>
<thead><tr><th>what predicts the better completion</th><th>accuracy</th><th>pairs</th></tr></thead>
<tbody>{% for label, accuracy, count in preferences_table %}<tr><td>{{ label }}</td><td>{{ percent(accuracy) }}</td><td>{{ count }}</td></tr>{% endfor %}</tbody>
</table></div>
<p class="soft">Intervals count distinct prompts, because pairs of one prompt are not independent. A policy's implicit reward is
log π(y) − log π<sub>ref</sub>(y).</p>
{% else %}<p>None were given (<code>preferences:</code>).</p>{% endif %}

<h2>Samples</h2>
<p class="soft">{{ samples_caption }}</p>
{% for s in samples %}<article class="sample"><header><span class="tag">{{ s.tag }}</span><pre>{{ s.prompt }}</pre></header>
<div class="answers">{% for m in models %}{% set a = s.models[m.name] %}<div><h4>{{ dot(m.name) }}</h4>
<pre>{{ a.completion }}</pre>
<div class="scores">{% for name, value in a.scores.items() %}{{ name }} {{ signed(value) }}{{ " · " }}{% endfor %}{{ a.tokens }} tokens{{ "" if a.ended else ", cut off" }}</div></div>{% endfor %}</div></article>
{% endfor %}

<h2>Training</h2>
{% if not runs %}<p>No runs were given (<code>runs:</code>, or <code>run:</code> of a model).</p>{% endif %}
{% for r in runs %}<h3>{{ r.title }}</h3><p class="soft"><code>{{ r.folder }}</code></p>
{% if r.figures %}{{ figures(r.figures) }}{% endif %}
{% if r.findings %}<table><thead><tr><th>step</th><th class="left">what went wrong</th><th class="left">what to try</th></tr></thead>
<tbody>{% for f in r.findings %}<tr><td>{{ f.step }}</td><td class="left wrap">{{ f.evidence }} <small>{{ f.name }}</small></td><td class="left wrap">{{ f.advice }}</td></tr>{% endfor %}</tbody></table>
{% elif r.metrics %}<p class="soft">The training doctor found nothing wrong.</p>{% endif %}
{% if r.lacking %}<p class="soft">Not logged: {{ r.lacking }}.</p>{% endif %}
{% for sentence in r.missing %}<p>Missing: {{ sentence }}</p>{% endfor %}
{% endfor %}

<h2>Stages</h2>
{% if runs %}<div class="scroll"><table>
<thead><tr><th>run</th><th class="left">method</th><th class="left">state</th><th>steps</th><th>wall time</th><th>peak memory</th></tr></thead>
<tbody>{% for r in runs %}<tr><td>{{ r.folder }}</td><td class="left">{{ r.method or "–" }}</td><td class="left">{{ r.state or "unknown" }}</td><td>{{ r.steps if r.steps is not none else "–" }}</td><td>{{ duration(r.wall_seconds) }}</td><td>{{ memory(r.peak_rss_mib) }}</td></tr>{% endfor %}</tbody>
</table></div>{% endif %}
<p class="soft">This evaluation took {{ duration(report.seconds) }}; sampling ran at
{% for m in models %}{{ "%.0f" | format(m.tokens_per_second) }} tokens/s ({{ m.name }}){{ ", " if not loop.last }}{% endfor %}.</p>

<h2>How it was measured</h2>
<div class="scroll"><table><thead><tr><th>judge</th><th class="left">source</th><th class="left">how</th><th class="left">what is known of it</th></tr></thead>
<tbody>{% for j in report.judges %}<tr><td>{{ j.name }}</td><td class="left wrap"><code>{{ j.source }}</code></td><td class="left wrap">{{ j.kind }}</td><td class="left wrap">{{ card(j.card) }}</td></tr>{% endfor %}</tbody></table></div>
<details><summary>Sampling, template and prompts</summary><pre>{{ settings }}</pre></details>
{% for r in runs if r.recipe %}<details><summary>Recipe of {{ r.folder }}</summary><pre>{{ r.recipe }}</pre></details>
{% endfor %}
"""

PAGE = page(TEMPLATE)
