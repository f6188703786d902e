"""The words for everything that is wrong with a recipe: exact, all at once, each with its place."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from rlhf.errors import RecipeError
from rlhf.recipe import load
from rlhf.recipe.foreign_names import SAID, SAME
from rlhf.recipe.preference import LossName
from rlhf.recipe.schema import METHODS
from rlhf.recipe.walk import section_at
from tests.recipe.support import DPO, workplace, write

__all__ = ["workplace"]


def problems(path: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_everything_wrong_is_told_at_once_in_the_order_of_the_file() -> None:
    path = write(
        """\
        method: dpo
        learning_rate: 1e-5
        model: {name: base, dtype: bf16}
        data:
          train: rows.jsonl
          eval: {path: held_out.jsonl, fromat: hh}
          max_length: "10"
          template: {prompt: {prompt}}
          max_length: 5
        dpo: {beta: 0, loss_type: ippo}
        lora: {target_modules: [1], r: 1.5}
        training: {lr: 3, bf16: yes, lr_scheduler_type: cosin, weight_decay: .nan, max_steps: abc}
        sft: {}
        ppo_epochs: 3
        logging:
        """
    )
    assert problems(path) == [
        "r.yaml:1: output_dir: required key is missing",
        "r.yaml:2: learning_rate: unknown key; learning_rate belongs under training:",
        "r.yaml:3: model.name_or_path: required key is missing",
        "r.yaml:3: model.dtype: expected one of auto, float32, bfloat16; got the string 'bf16'; did you mean 'bfloat16'?",
        "r.yaml:3: model.name: unknown key; did you mean 'name_or_path'?",
        "r.yaml:6: data.eval.fromat: unknown key; did you mean 'format'?",
        "r.yaml:7: data.max_length: expected a whole number, got the string '10'; write it without quotes",
        "r.yaml:8: data.template.prompt: expected text, got a section; put the text in quotes",
        "r.yaml:9: data.max_length: this key was already given on line 7",
        "r.yaml:10: dpo.beta: must be more than 0, got 0",
        f"r.yaml:10: dpo.loss_type: expected one of {', '.join(get_args(LossName))}; got the string 'ippo'; did you mean 'ipo'?",
        "r.yaml:11: lora.r: expected a whole number, got the number 1.5",
        "r.yaml:11: lora.target_modules.0: expected text, got the number 1; put the text in quotes",
        "r.yaml:12: training.lr_scheduler_type: expected one of constant, linear, cosine; got the string 'cosin'; "
        "did you mean 'cosine'?",
        "r.yaml:12: training.weight_decay: must be a finite number, got nan",
        "r.yaml:12: training.bf16: expected one of true, false, auto; got the string 'yes'; write true",
        "r.yaml:12: training.lr: unknown key; did you mean 'learning_rate'?",
        "r.yaml:12: training.max_steps: expected a whole number, got the string 'abc'",
        "r.yaml:13: sft: unknown key; sft is for recipes with method: sft",
        "r.yaml:14: ppo_epochs: unknown key; the keys here are output_dir, seed, method, model, quantization, lora, data, "
        "training, checkpoint, logging, doctor, dpo",
        "r.yaml:15: logging: expected a section of keys with values, got nothing (null)",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lr=3", "training.lr: unknown key; did you mean 'learning_rate'?"),
        ("training.max_lenght=3", "training.max_lenght: unknown key; did you mean 'max_length' under data:?"),
        ("training.max_length=3", "training.max_length: unknown key; max_length belongs under data:"),
        ("training.learning_rate=-1", "training.learning_rate: must be more than 0, got -1"),
        ("dpo.label_smoothing=0.5", "dpo.label_smoothing: must be less than 0.5, got 0.5"),
        ("seed=true", "seed: expected a whole number, got true"),
        (
            "lora.target_modules=5",
            "lora.target_modules: expected text or a list, got the number 5; put the text in quotes",
        ),
        ("data.train=[]", "data.train: the list must have at least one item"),
        ("data.train.0.split=1", "data.train.0.split: expected text, got the number 1; put the text in quotes"),
        ("data.template.prompt=hello", "data.template.prompt: must contain {prompt}"),
        ("quantization={}", "quantization: a 4-bit model is frozen and trains only adapters; add a lora: section"),
        (
            "method=dppo",
            "method: expected one of sft, reward, ppo, rloo, grpo, reinforce_pp, online_dpo, dpo, data, generate, eval; got the string 'dppo'; "
            "did you mean 'ppo' or 'dpo'?",
        ),
        ("training.learning_rate", "write it as key=value, for example training.learning_rate=1e-5"),
        ("=3", "write it as key=value, for example training.learning_rate=1e-5"),
        ("a..b=3", "write it as key=value, for example training.learning_rate=1e-5"),
        ("data.train.3.path=x", "data.train has 1 item, so the next one is data.train.1, not data.train.3"),
        ("method.x=1", "method is neither a section nor a list, so it has no x"),
        ("seed={a: 1, a: 2}", "a: this key was already given"),
        (
            "output_dir=a: b: c",
            "not valid YAML: mapping values are not allowed here (check the indentation, and quote "
            "a text that contains ': '); put a text with special characters in quotes inside the value: key='\"...\"'",
        ),
    ],
)
def test_what_is_wrong_with_an_override(override: str, message: str) -> None:
    assert f"override '{override}': {message}" in problems(write(DPO), override)


def test_a_misspelt_method_does_not_hide_the_rest() -> None:
    assert problems(write(DPO.replace("dpo", "rewards") + "seeds: 1\n")) == [
        "r.yaml:1: method: expected one of sft, reward, ppo, rloo, grpo, reinforce_pp, online_dpo, dpo, data, generate, eval; got the string 'rewards'; "
        "did you mean 'reward'?",
        "r.yaml:6: seeds: unknown key; did you mean 'seed'?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            "r.yaml:1: method: required key is missing; one of sft, reward, ppo, rloo, grpo, reinforce_pp, online_dpo, dpo, data, generate, eval",
        ),
        ("- a\n", "r.yaml:1: a recipe is a section of keys with values, not a list"),
        (
            "a: 1\nb:\n\t- x\n",
            "r.yaml:3: not valid YAML: found character '\\t' that cannot start any token "
            "(indent with spaces, not tabs)",
        ),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: not valid YAML: a recipe is one YAML document, and a second one starts here"),
        ('a: "\0"\n', "r.yaml:1: not valid YAML: the character U+0000 is not allowed"),
        ("[" * 5000, "r.yaml:1: nested too deeply to be a recipe"),
        (
            "method: ppo\noutput_dir: out\nmodel: {name_or_path: m}\ndata: {train: r.jsonl}\nppo:\n",
            "r.yaml:5: ppo: expected a section of keys with values, got nothing (null)",
        ),
        (
            "method: [dpo]\n",
            "r.yaml:1: method: expected one of sft, reward, ppo, rloo, grpo, reinforce_pp, online_dpo, dpo, data, generate, eval; got a list",
        ),
        (
            DPO + "seed: !!python/name:os.system\n",
            "r.yaml:6: the YAML tag !!python/name:os.system has no meaning in a recipe",
        ),
        (DPO + "seed: &x [*x]\n", "r.yaml:6: an alias inside the thing it stands for"),
        (DPO + "? [a]\n: 1\n", "r.yaml:6: a key must be plain text"),
        (DPO + f"seed: {'9' * 5000}\n", f"r.yaml:6: '{'9' * 40}' cannot be read as int"),
    ],
)
def test_what_is_wrong_with_the_yaml(text: str, message: str) -> None:
    Path("r.yaml").write_text(text, encoding="utf-8")
    assert message in problems("r.yaml")


def test_aliases_of_aliases_do_not_explode() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert problems(write("\n".join(lines)))[0].endswith("too large to be a recipe (more than 100000 values)")


def test_files_that_cannot_be_read() -> None:
    write(DPO)
    assert problems("rr.yaml") == ["rr.yaml: no such recipe file; did you mean 'r.yaml'?"]
    assert problems("r.yaml/x") == ["r.yaml/x: no such recipe file"]
    Path("folder").mkdir()
    assert problems("folder") == ["folder: this is a folder; to run its recipes in order: rlhf run folder"]
    Path("latin.yaml").write_bytes(b"method: dpo\nmodel: \xe9\n")
    assert problems("latin.yaml") == ["latin.yaml:2: not UTF-8 text"]
    Path("marked.yaml").write_bytes(b"\xef\xbb\xbf" + DPO.replace("\n", "\r\n").encode())
    assert load("marked.yaml").output_dir == "out"


def test_validators_name_the_key_at_fault() -> None:
    path = write(
        """\
        method: ppo
        output_dir: out
        model: {name_or_path: base}
        data: {train: rows.jsonl}
        ppo:
          rewards:
            - {callable: scores, weight: 2}
            - {model: out/reward, callable: a:b}
          num_mini_batches: 3
        """
    )
    assert problems(path) == [
        "r.yaml:7: ppo.rewards.0.callable: must read module:function",
        "r.yaml:8: ppo.rewards.1: give exactly one of model (a reward model's folder), models (several), callable "
        "(module:function) and url (a server)",
    ]
    assert problems(path, "ppo.rewards=[{callable: 'a:b'}]") == [
        "r.yaml:9: ppo.num_mini_batches: must divide rollout_batch_size * sampling.n"
    ]


@pytest.mark.parametrize("name", sorted(SAME))
def test_names_of_other_trainers_are_answered_with_ours(name: str) -> None:
    """Each of our keys in the table exists in some method's recipe, and the answer names it."""
    keys = [part for part in SAME[name].split(".") if not part.isdigit()]
    homes = [section_at(schema, tuple(keys[:-1])) for schema in METHODS.values()]
    assert any(home is not None and keys[-1] in home.model_fields for home in homes)
    assert any(
        f": {name}: unknown key; write {SAME[name]} instead" in line for line in problems(write(DPO), f"{name}=1")
    )


@pytest.mark.parametrize("name", sorted(SAID))
def test_names_of_other_trainers_without_a_counterpart_say_what_to_do(name: str) -> None:
    for key in (name, f"training.{name}"):
        assert any(f": {key}: unknown key; {SAID[name]}" in line for line in problems(write(DPO), f"{key}=1"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.per_device_batch_size=1", "did you mean 'per_device_train_batch_size'?"),
        ("training.warmup_ratio=0.1", "write training.warmup_steps: the ratio times the number of steps"),
        ("lora_r=8", "write lora.r instead"),
        ("training.fp16=true", "write training.bf16: true"),
        ("logging.report_to=wandb", "expected a list, got the string 'wandb'; write [wandb]"),
        ("training.quantization={}", "unknown key; quantization belongs at the left margin"),
    ],
)
def test_suggestions_do_not_mislead(override: str, message: str) -> None:
    assert any(message in line for line in problems(write(DPO), override))


def test_a_missing_method_does_not_hide_the_rest() -> None:
    found = problems(write("model: {name: base}\ntraining: {lr: 1}\ndpo: {}\nseeds: 1\n"))
    assert sorted(found) == sorted(
        [
            "r.yaml:1: method: required key is missing; one of sft, reward, ppo, rloo, grpo, reinforce_pp, online_dpo, dpo, data, generate, eval; "
            "did you mean 'dpo'?",
            "r.yaml:1: output_dir: required key is missing",
            "r.yaml:1: model.name_or_path: required key is missing",
            "r.yaml:1: data: required key is missing",
            "r.yaml:1: model.name: unknown key; did you mean 'name_or_path'?",
            "r.yaml:2: training.lr: unknown key; did you mean 'learning_rate'?",
            "r.yaml:4: seeds: unknown key; did you mean 'seed'?",
        ]
    )
