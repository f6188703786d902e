"""Judges beside people: accuracy against the majority and Cohen's kappa, on PandaLM (three annotators) and OpenAssistant (ranks).

    python -m benchmarks.agreement --pandalm ../shared/data/pandalm/testset-v1.json --oasst ../shared/data/oasst/en_100_tree.jsonl.gz \
        --model embedded:smollm2-135m-instruct --pairs 100

Prints a table and writes it as JSON with `--json`. People's own agreement stands beside the judges'; so do two judges that know nothing
of the texts but their length and their place. A judging model is asked for one line, in both orders, at temperature 0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.judge_agreement import VotedPair, agreement, by_engine, by_score, of_rankings, pandalm
from benchmarks.publish import publish
from rlhf.recipe.sections import ModelSection
from rlhf.recipe.synthesis import TransformersSection

JUDGED = ("flip_rate", "shown_first_wins", "unparsed_rate")
HEAD = (
    "Judges beside people: pairs with a majority, a tie being an answer like any other. Without ties: over the pairs whose majority is "
    "none, a judge's tie counting one half.\nA judging model is asked in both orders, for one line, at temperature 0; a verdict that "
    "changes with the order (flip rate) is a tie."
)
COLUMNS = ("data", "judge", "pairs", "accuracy", "without ties", "kappa", "flip rate", "shown first wins", "unparsed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pandalm", type=Path)
    parser.add_argument("--oasst", type=Path)
    parser.add_argument("--model", help="a judging model; without it only the judges by length and place")
    parser.add_argument("--pairs", type=int, help="the first so many pairs of each set")
    parser.add_argument("--max-chars", type=int, default=2000, help="leave out pairs with longer texts (counted)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--publish", action="store_true", help="write benchmarks/results/agreement.md and .json")
    arguments = parser.parse_args()
    if not (arguments.pandalm or arguments.oasst):
        parser.error("give --pandalm, --oasst or both")
    results = []
    for name, path, reader in (
        ("PandaLM", arguments.pandalm, pandalm),
        ("OpenAssistant", arguments.oasst, of_rankings),
    ):
        if path is not None:
            results += measured(name, reader(path), arguments)
    for row in results:
        print(line(row))
    if arguments.publish:
        publish("agreement", HEAD, table(results), results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def table(results: list[dict[str, Any]]) -> list[str]:
    """The results in Markdown; people's own agreement first."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    people = {row["data"]: row for row in results if row["humans"]}
    for name, row in people.items():
        cells = [name, "people", row["pairs"], row["humans"]["accuracy"], None, row["humans"]["kappa"]]
        lines.append(f"| {' | '.join(map(shown, [*cells, None, None, None]))} |")
    for row in results:
        accuracy = f"{row['accuracy']:.3f} +- {row['standard_error']:.3f}"
        cells = [row["data"], row["judge"], row["with_majority"], accuracy, row["accuracy_decided"], row["kappa"]]
        lines.append(f"| {' | '.join(map(shown, [*cells, *(row.get(key) for key in JUDGED)]))} |")
    return lines


def measured(name: str, pairs: list[VotedPair], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    short = [p for p in pairs if max(len(str(t)) for t in (p.prompt, p.first, p.second)) <= arguments.max_chars]
    print(
        f"{name}: {len(pairs)} pairs, {len(pairs) - len(short)} with texts over {arguments.max_chars} characters left out"
    )
    held = short[: arguments.pairs]
    judges: list[tuple[str, Any, dict[str, Any]]] = [
        ("longer", by_score(held, lambda prompt, text: len(text)), {}),
        ("the first", ["first"] * len(held), {}),
    ]
    if arguments.model:
        judges.append((arguments.model, *by_model(held, arguments.model)))
    return [
        {"data": name, "judge": judge, **agreement(held, said), **{k: report[k] for k in JUDGED if k in report}}
        for judge, said, report in judges
    ]


def by_model(pairs: list[VotedPair], model: str) -> tuple[Any, dict[str, Any]]:
    from rlhf.generation.engines import open_engine

    section = TransformersSection(engine="transformers", model=ModelSection(name_or_path=model))
    engine = open_engine(section, name="judge")
    try:
        return by_engine(pairs, engine, sampling={"temperature": 0.0, "max_new_tokens": 16, "batch_size": 8})
    finally:
        engine.close()


def shown(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def line(row: dict[str, Any]) -> str:
    people = row["humans"] or {}
    parts = [f"{row['data']:<14}{row['judge']:<34} {row['with_majority']} of {row['pairs']} pairs"]
    parts += [f"accuracy {shown(row['accuracy'])} +- {shown(row['standard_error'])}", f"kappa {shown(row['kappa'])}"]
    parts += [f"without ties {shown(row['accuracy_decided'])}"]
    parts += [f"people: {shown(people.get('accuracy'))}, kappa {shown(people.get('kappa'))}"]
    parts += [f"{key} {shown(row[key])}" for key in JUDGED if key in row]
    return "  ".join(parts)


if __name__ == "__main__":
    main()
