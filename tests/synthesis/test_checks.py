"""`rlhf check`, and a build before its first request: faults of the model steps, by file, line and key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.cli.check import check
from rlhf.errors import RecipeError
from rlhf.recipe.loader import read
from rlhf.synthesis.checks import problems_of
from tests.synthesis.support import FakeEngine, build, recipe

RECIPE = """\
method: data
output_dir: out
sources: [{{path: rows.jsonl}}]
engines:
  a: {{engine: openai, base_url: "http://x/v1", model: m}}
  b: {{engine: transformers, model: {{name_or_path: "embedded:smollm2-135m-instruct"}}}}
steps:
  - pool:
      members:
        - {{engine: b, sampling: {{num_beams: 4, temperature: 0}}}}
        - {{engine: a{member}}}
  - judge: {{engine: a{judge}}}
"""


@pytest.mark.parametrize(
    ("member", "judge", "problem"),
    [
        (
            ", sampling: {num_beams: 4}",
            "",
            "r.yaml:11: steps.0.pool.members.1.sampling.num_beams: engine openai has no",
        ),
        (", prompt: 'Be brief.'", "", "r.yaml:11: steps.0.pool.members.1.prompt: must hold {prompt}"),
        ("", ", prompt: none.txt", "r.yaml:12: steps.1.judge.prompt: none.txt: cannot be read"),
        ("", ", prompt: '{prompt} {A} {b}'", "steps.1.judge.prompt: must hold {a} (it may hold {form} too)"),
        (
            "",
            ", sampling: {no_repeat_ngram_size: 3}",
            "steps.1.judge.sampling.no_repeat_ngram_size: engine openai cannot",
        ),
        ("", ", sampling: {length_penalty: 2.0}", "steps.1.judge.sampling.length_penalty: does nothing without"),
    ],
)
def test_check_finds_them_by_file_line_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str, judge: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "q"}\n')
    Path("r.yaml").write_text(RECIPE.format(member=member, judge=judge))
    [found] = check(read(Path("r.yaml"))).problems
    assert problem in found
    Path("r.yaml").write_text(RECIPE.format(member="", judge=""))
    assert check(read(Path("r.yaml"))).problems == []


A, REJECTED = {"engine": "a"}, {"generate": {"engine": "a", "into": "rejected"}}
COMPLETION = {"generate": {"engine": "a", "into": "completion"}}
POOL = {"pool": {"members": [A]}}


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([REJECTED, {"judge": A}], [("judge", "takes rows that are a ranking, and here come preference rows")]),
        ([COMPLETION, {"select": {}}], [("select", "takes rows that are a ranking, and here come demonstration rows")]),
        (
            [POOL, {"judge": A}, {"select": {}}, {"evolve": A}, {"judge": A}],
            [("evolve", "a demonstration or a ranking")],
        ),
        ([POOL, {"judge": A}, POOL, {"judge": A}], [("pool", "scored already")]),
        ([POOL, {"judge": A}, {"evolve": A}, POOL, {"judge": A}], []),
        ([COMPLETION, REJECTED], []),
        ([COMPLETION, {"evolve": A | {"keep": "last"}}, {"paraphrase": A}, REJECTED], []),
        ([{"judge": A}, {"dedup": {}}, {"pairs": {}}], []),
    ],
)
def test_steps_that_cannot_take_what_comes_to_them(
    tmp_path: Path, steps: list[Any], found: list[tuple[str, str]]
) -> None:
    said = list(problems_of(recipe(tmp_path, "x.jsonl", *steps, engines=["a"])))
    assert len(said) == len(found)
    for (key, message), (step, part) in zip(said, found, strict=True):
        assert key[2] == step and part in message


def test_a_build_finds_them_before_it_pays_for_the_steps_before(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "q", "completion": "c"}))
    steps: list[dict[str, Any]] = [
        {"generate": {"engine": "a"}},
        {"judge": {"engine": "a", "sampling": {"num_beams": 2}}},
    ]
    engine = FakeEngine()
    with pytest.raises(RecipeError, match=r"steps\.1\.judge\.sampling\.num_beams: engine openai has no beam search"):
        build(recipe(tmp_path / "out", tmp_path / "rows.jsonl", *steps, engines=["a"]), a=engine)
    assert engine.prompts == []


def test_checking_loads_neither_torch_nor_pyarrow() -> None:
    code = "import sys, rlhf.cli.check; sys.exit(bool({'torch', 'pyarrow', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
