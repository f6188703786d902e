"""docs/lint.md names every check and every key of the report; measuring without a tokenizer imports nothing heavy."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

from rlhf.data.lint.texts import FLAWS
from tests.data.support import lines

ROOT = Path(__file__).parents[2]
PAIRS = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(3)]


def test_every_check_is_documented() -> None:
    """The names are read off the source: the second argument of every Finding, and one for every flaw of a text.

    Where that argument is a variable, the name is what the source assigns to `check`.
    """
    names = {f"texts_{flaw}" for flaw in FLAWS}
    for path in (ROOT / "rlhf/data/lint").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                named: ast.expr = node.args[1]
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "check":
                named = node.value
            else:
                continue
            names |= {n.value for n in ast.walk(named) if isinstance(n, ast.Constant)} - {"texts_"}
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/lint.md").read_text(), re.M)
    assert len(table) == len(set(table)) > 20
    assert set(table) == {n for n in names if " " not in n}


def test_every_key_of_the_report_is_documented_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", PAIRS)
    code = (
        "import json, sys\nfrom rlhf.data.stats.inputs import target_of\nfrom rlhf.data.stats.measure import measure\n"
        f"report = measure(target_of({path!r}))\n"
        "heavy = [m for m in ('torch', 'transformers', 'matplotlib', 'datasets') if m in sys.modules]\n"
        "print(json.dumps([heavy, list(report), *map(list, report['splits'].values())]))"
    )
    heavy, *keys = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert heavy == []
    words = set(re.findall(r"\w+", (ROOT / "docs/lint.md").read_text().split("## JSON")[1]))
    assert {key for part in keys for key in part} - words == set()
