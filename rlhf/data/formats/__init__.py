"""One file row to one canonical row, or a reason why not.

The second step of the pipeline, after `sources`: it knows what the published data sets look like, and nothing later
does. A row that breaks its format's rules raises a DataError, which the caller puts into the quarantine; a file without
the columns that its format needs is refused whole (see `recognise_format`). docs/formats.md shows each format.

Different from the reference code: KoChatGPT's `ranking` is an order (ranking[0] is the INDEX of the best completion),
not the rank of each completion, which would flip the pairs of the two 3-cycles; that both dialogues of a pair share a
prompt is checked, not assumed; nothing is filled in for what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlhf.data.formats import dialogues, instructions, judged, kochatgpt, plain, stack_exchange
from rlhf.data.formats.fields import Fields, Spec
from rlhf.data.rows import Located, Row
from rlhf.recipe.sections import Format, SourceSection

__all__ = ["SPECS", "Fields", "Spec", "convert"]

SPECS: Mapping[Format, Spec] = {
    "kochatgpt_rm": kochatgpt.RM,
    "kochatgpt_sft": kochatgpt.SFT,
    "kochatgpt_ppo": kochatgpt.PPO,
    "kochatgpt_chat": kochatgpt.CHAT,
    "stack_exchange_paired": stack_exchange.PAIRED,
    "stack_exchange_dump": stack_exchange.DUMP,
    "squad": instructions.SQUAD,
    "alpaca": instructions.ALPACA_SPEC,
    "sharegpt": dialogues.SHARE_GPT,
    "messages": dialogues.MESSAGES,
    "hh": dialogues.HH,
    "hh_turns": dialogues.HH_TURNS,
    "oasst": dialogues.OASST,
    "ultrafeedback": judged.ULTRAFEEDBACK,
    "annotators": judged.ANNOTATORS,
    "scored": plain.SCORED,
    "preference": plain.PREFERENCE,
    "ranking": plain.RANKING,
    "demonstration": plain.DEMONSTRATION,
    "unpaired": plain.UNPAIRED,
    "prompt": plain.PROMPT,
}


def convert(located: Located, format: Format, source: SourceSection | None = None) -> Row:
    """The canonical row (see `rows`), with its fields and no others. Raises DataError for a row to be quarantined.

    `source` gives the columns' names and the template; `recognise_format.choose` has checked both.
    """
    if source is None:
        return SPECS[format].convert(Fields(located))
    return SPECS[format].convert(Fields(located, source.columns, source.template, source.template_no_input))
