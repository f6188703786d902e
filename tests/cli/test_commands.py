"""The command line: exit codes, one message on standard error, and nothing heavy imported before it is needed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rlhf import __version__
from rlhf.cli import app
from rlhf.errors import CheckpointError, DataError, RecipeError, SetupError
from rlhf.runs.failure import LESS_MEMORY

ROOT = Path(__file__).resolve().parents[2]
DATA = "method: data\noutput_dir: out\nsources: rows.jsonl\n"
SFT = "method: sft\noutput_dir: out\nmodel: {name_or_path: base}\ndata: {train: rows.jsonl}\n"
PPO = SFT.replace("sft", "ppo") + "ppo: {rewards: [{callable: scores:score}]}\n"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with rows.jsonl; the process's own settings come back afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RLHF_DEBUG", "0")  # the commands may set it; monkeypatch sets it back
    handler = signal.getsignal(signal.SIGTERM)
    Path("rows.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    yield
    signal.signal(signal.SIGTERM, handler)


def rlhf(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="rlhf")


def recipe(text: str, name: str = "r.yaml") -> str:
    Path(name).write_text(text)
    return name


def entry_point(monkeypatch: pytest.MonkeyPatch, function) -> None:
    """Let `function` stand in for every method's entry point."""
    module = import_module("rlhf.runs.start")
    monkeypatch.setattr(
        module, "import_module", lambda name: type("Module", (), {"__getattr__": lambda *_: function})()
    )


def status() -> dict:
    return json.loads(Path("out/status.json").read_text())


def test_version() -> None:
    result = rlhf("--version")
    assert (result.exit_code, result.stdout) == (0, f"rlhf {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing argument 'RECIPE'"),
        (["tran", "r.yaml"], "No such command 'tran'"),
        (["train", "r.yaml", "--lr", "3"], "No such option: --lr"),
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], message: str) -> None:
    result = rlhf(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_a_good_recipe_runs_once_with_its_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    entry_point(monkeypatch, lambda recipe: seen.append((recipe.seed, status()["state"])) or {})
    result = rlhf("train", recipe(SFT), "seed=7")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "done: out\n", "")
    assert seen == [(7, "running")]
    assert (status()["state"], status()["exit_code"], status()["error"]) == ("done", 0, None)
    assert "seed: 7\n" in Path("out/recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("command", "text", "message"),
    [
        (["train"], DATA, "r.yaml:1: method: rlhf train does not run data recipes; use: rlhf data build r.yaml"),
        (["data", "build"], SFT, "r.yaml:1: method: rlhf data build does not run sft recipes; use: rlhf train r.yaml"),
        (["eval"], PPO, "r.yaml:1: method: rlhf eval does not run ppo recipes; use: rlhf train r.yaml"),
        (["generate"], DATA, "r.yaml:1: method: rlhf generate does not run data recipes; use: rlhf data build r.yaml"),
    ],
)
def test_the_wrong_command_names_the_right_one(command: list[str], text: str, message: str) -> None:
    result = rlhf(*command, recipe(text))
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", message + "\n")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RecipeError(["a:1: x: bad", "a:2: y: bad"]), 2, "a:1: x: bad\na:2: y: bad"),
        (DataError("rows.jsonl", "no text", row=3, field="prompt"), 3, "rows.jsonl:3: prompt: no text"),
        (SetupError("no GPU; use a CPU recipe"), 4, "error: no GPU; use a CPU recipe"),
        (CheckpointError("broken"), 1, "error: broken"),
        (MemoryError(), 4, f"error: out of memory; {LESS_MEMORY}"),
        (RuntimeError("x: can't allocate memory: you tried"), 4, f"error: out of memory; {LESS_MEMORY}"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/x"),
            4,
            "error: the disk is full while writing out/x; free some space, or set output_dir to another disk",
        ),
        (ValueError("first\nsecond"), 1, "error: ValueError: first (--debug shows where)"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (SystemExit(143), 143, "error: terminated"),
    ],
)
def test_every_failure_has_its_exit_code_and_its_words(monkeypatch, error, code: int, message: str) -> None:
    def fail(recipe: object) -> None:
        raise error

    entry_point(monkeypatch, fail)
    result = rlhf("train", recipe(SFT))
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", message + "\n")
    assert status()["state"] == ("interrupted" if code in (130, 143) else "failed")
    assert status()["exit_code"] == code
    assert status()["error"] == message.removeprefix("error: ").removesuffix(" (--debug shows where)")


def test_device_memory_errors_say_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    def fail(recipe: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    entry_point(monkeypatch, fail)
    result = rlhf("train", recipe(SFT))
    assert result.exit_code == 4
    assert result.stderr == (
        f"error: out of device memory (CUDA out of memory. Tried to allocate 2 GiB.); {LESS_MEMORY}\n"
    )


@pytest.mark.parametrize("arguments", [["--debug", "train", "r.yaml"], ["train", "r.yaml", "--debug"]])
def test_debug_shows_the_traceback_and_the_message_last(monkeypatch, arguments: list[str]) -> None:
    entry_point(monkeypatch, lambda recipe: 1 / 0)
    recipe(SFT)
    result = rlhf(*arguments)
    lines = result.stderr.splitlines()
    assert result.exit_code == 1
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "error: ZeroDivisionError: division by zero"


def test_only_rank_0_speaks_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_point(monkeypatch, lambda recipe: {})
    monkeypatch.setenv("RANK", "1")
    assert rlhf("train", recipe(SFT)).output == ""
    assert not Path("out").exists()
    result = rlhf("train", recipe("method: dpo\n"))
    assert (result.exit_code, result.output) == (2, "")


def test_an_output_folder_that_cannot_be_made() -> None:
    result = rlhf("train", recipe(SFT), "output_dir=rows.jsonl")
    assert (result.exit_code, result.stderr) == (2, "output_dir: rows.jsonl cannot be written: File exists\n")


def test_check_tells_the_key_facts_and_what_is_not_there_yet() -> None:
    result = rlhf("check", recipe(SFT), "model.name_or_path=out/sft/final", "lora={}", "training.max_steps=5")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "ok: r.yaml (sft)",
        "  output_dir: out, seed: 0",
        "  model: out/sft/final (float32, lora r 8)",
        "  data: rows.jsonl, max_length 1024",
        "  training: 5 steps, batch 8 x 1 on each device, learning_rate 1e-05",
        "  note: override 'model.name_or_path=out/sft/final': model.name_or_path: out/sft/final is not there yet "
        "(made by an earlier stage?)",
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
        "data.train=out/data/*.parquet",
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
            "data.train.0.path: out/data is no file or folder here (made by an earlier stage, or a hub name?)",
        ),
        ("data.train=out/data/*.parquet", "data.train.0.path: out/data is not there yet (made by an earlier stage?)"),
        (
            "model.name_or_path=org/model",
            "model.name_or_path: org/model is not a folder here (made by an earlier stage, or a hub name?)",
        ),
    ],
)
def test_check_notes_what_an_earlier_stage_may_make(change: str, note: str) -> None:
    Path("base").mkdir()
    Path("base/config.json").write_text("{}")
    result = rlhf("check", recipe(SFT), change)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[5:] == [f"  note: override '{change}': {note}"]


def test_nothing_heavy_is_imported_by_help_and_check() -> None:
    program = (
        "import sys, rlhf.cli\n"
        "for arguments in (['--help'], ['check', sys.argv[1]]):\n"
        "    try: rlhf.cli.app(arguments)\n"
        "    except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'datasets', 'numpy', 'pandas', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    path = recipe(PPO.replace("scores:score", "json:loads"))
    done = subprocess.run([sys.executable, "-c", program, path], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ok: r.yaml (ppo)" in done.stdout


def test_python_m_rlhf_says_a_recipe_error_once() -> None:
    command = [sys.executable, "-m", "rlhf", "train", recipe("method: sft\noutput_dir: out\n"), "model.name=x"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "r.yaml:1: data: required key is missing",
        "override 'model.name=x': model.name_or_path: required key is missing",
        "override 'model.name=x': model.name: unknown key; did you mean 'name_or_path'?",
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


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
            "the rows are messages, which need a chat template; set data.template.kind: chat",
        ),
        ("", SFT, "data.train.0.path: rows.jsonl: holds no rows"),
    ],
)
def test_check_reads_the_first_rows(rows: str, text: str, message: str) -> None:
    Path("rows.jsonl").write_text(rows)
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
