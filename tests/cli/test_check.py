"""`rlhf check`: what it finds in a recipe, and what it does not mind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import PPO, SFT, recipe, rlhf, workplace

__all__ = ["workplace"]


def test_check_tells_the_key_facts_and_what_is_not_there_yet() -> None:
    recipe(SFT.replace("dir: out", "dir: out/sft"), "1_sft.yaml")
    result = rlhf("check", recipe(SFT), "model.name_or_path=out/sft/final", "lora={}", "training.max_steps=1")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "ok: r.yaml (sft)",
        "  output_dir: out, seed: 0",
        "  model: out/sft/final (float32, lora)",
        "  data: rows.jsonl, max_length 1024",
        "  training: 1 step, batch 8 x 1 on each device, learning_rate 1e-05",
        "  note: override 'model.name_or_path=out/sft/final': model.name_or_path: out/sft/final is not there yet; "
        "1_sft.yaml makes it",
    ]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("data.train=row.jsonl", "data.train.0.path: no such file: row.jsonl; did you mean 'rows.jsonl'?"),
        ("data.train=./*.csv", "data.train.0.path: no file matches ./*.csv"),
        (
            "data.train=embedded:film-review",
            "data.train.0.path: no such embedded model or data: embedded:film-review; "
            "did you mean 'embedded:film-reviews'?",
        ),
        ("model.name_or_path=/nowhere/llama", "model.name_or_path: no such folder: /nowhere/llama"),
        ("model.name_or_path=out/sft/final", "model.name_or_path: no such folder: out/sft/final"),
        ("data.train=out/data/*.parquet", "data.train.0.path: no file matches out/data/*.parquet"),
        ("data.train=there", "data.train.0.path: no such folder: there"),
        (
            "ppo.rewards.0.callable=scorez:score",
            "ppo.rewards.0.callable: no module named 'scorez' (looked in this folder and in the installed packages)",
        ),
        (
            "ppo.rewards.0.callable=scores:scor",
            "ppo.rewards.0.callable: scores has no 'scor'; did you mean 'scores:score'?",
        ),
        (
            "ppo.rewards.0.callable=json.nope:loads",
            "ppo.rewards.0.callable: no module named 'json.nope' (looked in this folder and in the installed packages)",
        ),
    ],
)
def test_check_finds_what_does_not_exist(change: str, problem: str) -> None:
    Path("scores.py").write_text("raise SystemExit('check must not run this')\ndef score(prompts, completions): ...\n")
    result = rlhf("check", recipe(PPO), change)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"override '{change}': {problem}\n"


@pytest.mark.parametrize(
    "change",
    [
        "data.train=./*.jsonl",
        "data.train=embedded:film-reviews",
        "data.train=out/data",
        "ppo.rewards.0.callable=json.decoder:JSONDecoder",
        "model.name_or_path=org/model",
        "ppo.reference=initial",
    ],
)
def test_check_accepts_what_exists_or_may_yet(change: str) -> None:
    Path("scores.py").write_text("score = len\n")
    assert rlhf("check", recipe(PPO), change).exit_code == 0


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (
            "data.train=out/data",
            "data.train.0.path: out/data is no file or folder here (is it a hub name?)",
        ),
        (
            "model.name_or_path=org/model",
            "model.name_or_path: org/model is not a folder here (is it a hub name?)",
        ),
    ],
)
def test_check_notes_what_may_be_on_the_hub(change: str, note: str) -> None:
    Path("base").mkdir()
    Path("base/config.json").write_text("{}")
    result = rlhf("check", recipe(SFT), change)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[5:] == [f"  note: override '{change}': {note}"]


@pytest.mark.parametrize(
    ("rows", "text", "message"),
    [
        (
            '{"prompt": "p", "completion": "c"}',
            SFT.replace("sft", "dpo"),
            "data.train.0.path: these are demonstration rows",
        ),
        (
            '{"a": "p"}',
            SFT.replace("rows.jsonl", "{path: rows.jsonl, columns: {prompt: q}}"),
            "columns: prompt: q: no such",
        ),
        (
            '{"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]}',
            SFT,
            "the rows are messages, which need a chat template, and the tokenizer of base has none",
        ),
        ("", SFT, "data.train.0.path: rows.jsonl: holds no rows"),
    ],
)
def test_check_reads_the_first_rows(rows: str, text: str, message: str) -> None:
    Path("rows.jsonl").write_text(rows)
    Path("base").mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        Path("base", name).write_text("{}")
    result = rlhf("check", recipe(text))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) <= 2


def test_check_knows_a_reward_model_a_chat_template_and_a_function() -> None:
    for folder in ("base", "judge/final"):
        Path(folder).mkdir(parents=True)
        Path(folder, "config.json").write_text("{}")
    Path("base/tokenizer_config.json").write_text("{}")
    Path("scores.py").write_text("score = 3\nif True:\n    def other(): ...\n")
    ppo = recipe(PPO)
    found = rlhf(
        "check", ppo, "data.template.kind=chat", "ppo.rewards=[{callable: scores:score}, {model: judge}]"
    ).stderr
    assert "data.template.kind: chat, but the tokenizer of base has no chat template" in found
    assert "ppo.rewards.0.callable: scores:score is not a function" in found
    assert "ppo.rewards.1.model: judge is no reward model" in found
    Path("judge/final/head.safetensors").touch()
    Path("base/chat_template.jinja").touch()
    changes = ("data.template.kind=chat", "ppo.rewards=[{callable: ./scores.py:other}, {model: judge}]")
    assert rlhf("check", ppo, *changes).exit_code == 0


def test_check_tells_missing_files_beside_mistakes_in_the_recipe() -> None:
    result = rlhf("check", recipe(SFT.replace("rows", "row") + "sead: 1\n"))
    assert result.stderr.splitlines() == [
        "r.yaml:4: data.train.0.path: no such file: row.jsonl; did you mean 'rows.jsonl'?",
        "r.yaml:5: sead: unknown key; did you mean 'seed'?",
    ]


def test_only_a_recipe_that_runs_before_makes_what_is_missing() -> None:
    later = recipe(SFT.replace("dir: out", "dir: out/sft"), "3_sft.yaml")
    Path("4_broken.yaml").write_text("output_dir: [")
    change = "model.name_or_path=out/sft/final"
    assert rlhf("check", recipe(SFT.replace("dir: out", "dir: other"), "2_dpo.yaml"), change).stderr.endswith(
        "no such folder: out/sft/final\n"
    )
    assert f"{later} makes it" in rlhf("check", recipe(SFT, "5_dpo.yaml"), change).stdout


def test_a_wrong_key_does_not_hide_what_is_missing_beside_it() -> None:
    text = SFT.replace("name_or_path: base", "name_or_path: ./nowhere, dtype: bf16")
    assert rlhf("check", recipe(text)).stderr.splitlines() == [
        "r.yaml:3: model.dtype: expected one of auto, float32, bfloat16; got the string 'bf16'; did you mean 'bfloat16'?",
        "r.yaml:3: model.name_or_path: no such folder: ./nowhere",
    ]


def test_columns_of_ones_own_are_answered_for_the_method() -> None:
    Path("rows.jsonl").write_text('{"question": "p", "good": "a", "bad": "b"}\n')
    assert "format: preference, columns: " in rlhf("check", recipe(SFT.replace("sft", "dpo"))).stderr
    assert "format: demonstration, columns: " in rlhf("check", recipe(SFT)).stderr


SAMPLE = "method: generate\noutput_dir: out\nmodel: {name_or_path: judge}\nprompts: rows.jsonl\n"
COMPARE = (
    "method: eval\noutput_dir: out\nmodels: [{name: a, name_or_path: base}, {name: b, name_or_path: judge}]\n"
    "prompts: rows.jsonl\nscorers: [{model: judge}]\n"
)
ASK = (
    "method: data\noutput_dir: out\nsources: rows.jsonl\nsteps: [{paraphrase: {engine: e}}]\n"
    "engines: {e: {engine: vllm, model: base, adapter: judge}}\n"
)


@pytest.mark.parametrize(
    ("command", "text", "changes", "key"),
    [
        ("train", SFT, ("model.name_or_path=judge",), "model.name_or_path"),
        ("train", SFT.replace("sft", "dpo"), ("model.name_or_path=judge/final",), "model.name_or_path"),
        ("train", SFT.replace("sft", "dpo"), ("dpo.reference=judge",), "dpo.reference"),
        ("train", PPO, ("model.name_or_path=judge",), "model.name_or_path"),
        ("train", PPO, ("ppo.reference=judge", "ppo.value_model=judge"), "ppo.reference"),
        ("generate", SAMPLE, (), "model.name_or_path"),
        ("eval", COMPARE, (), "models.1.name_or_path"),
        ("data build", ASK, (), "engines.e.adapter"),
        ("data build", ASK, ("engines.e.model=judge", "engines.e.adapter=null"), "engines.e.model"),
    ],
)
def test_a_reward_model_is_refused_where_a_language_model_stands(
    command: str, text: str, changes: tuple[str, ...], key: str
) -> None:
    """`rlhf check` says it, and so does the command itself, before anything is loaded."""
    for folder in ("base", "judge/final"):
        Path(folder).mkdir(parents=True)
        Path(folder, "config.json").write_text("{}")
    Path("judge/final/head.safetensors").touch()
    Path("scores.py").write_text("def score(prompts, completions): ...\n")
    for words in ("check", command):
        result = rlhf(*words.split(), recipe(text), *changes)
        problems = [line for line in result.stderr.splitlines() if "is a reward model" in line]
        assert result.exit_code == 2 and len(problems) == 1, result.stderr
        assert f"{key}: judge" in problems[0] and "scores texts and writes none" in problems[0]


@pytest.mark.parametrize(
    ("text", "key", "kind"),
    [
        (PPO, "ppo.rewards.0.model", "data.template"),
        (SAMPLE, "scorers.0.model", "template"),
        (COMPARE, "scorers.0.model", "template"),
    ],
    ids=["ppo", "generate", "eval"],
)
def test_a_reward_model_of_another_template_is_found_before_anything_is_loaded(text: str, key: str, kind: str) -> None:
    Path("base").mkdir()
    Path("base/config.json").write_text("{}")
    Path("judge/final").mkdir(parents=True)
    for name, content in (
        ("config.json", "{}"),
        ("head.safetensors", ""),
        ("lineage.json", '{"template": {"kind": "plain", "prompt": "Question: {prompt}"}}'),
    ):
        Path("judge/final", name).write_text(content)
    Path("scores.py").write_text("def score(prompts, completions): ...\n")
    scorer = f"{key.removesuffix('.0.model')}=[{{model: judge}}]"
    said = rlhf("check", recipe(text), scorer).stderr
    assert (
        f"{key}: the reward model judge was trained with another template (prompt 'Question: {{prompt}}' instead of"
        in said
    )
    for allowed in (
        (scorer.replace("model: judge", "model: judge, other_template: true"),),
        (scorer, f"{kind}.prompt='Question: {{prompt}}'"),
    ):
        assert "another template" not in rlhf("check", recipe(text), *allowed).stderr


def test_a_reward_model_may_go_on_as_a_reward_model() -> None:
    Path("judge").mkdir()
    for name in ("config.json", "tokenizer_config.json", "head.safetensors"):
        Path("judge", name).write_text("{}")
    assert rlhf("check", recipe(SFT.replace("sft", "reward")), "model.name_or_path=judge").exit_code == 0
