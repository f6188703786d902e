"""The command line: exit codes, one message on standard error, and nothing heavy imported before it is needed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from rlhf import __version__, run
from rlhf.errors import CheckpointError, DataError, RecipeError, SetupError
from rlhf.runs.failure import LESS_MEMORY
from tests.cli.support import DATA, PPO, ROOT, SFT, recipe, rlhf, workplace

__all__ = ["workplace"]


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
    def ended(seconds: float) -> None:
        raise SystemExit(143)

    monkeypatch.setattr("rlhf.cli.common.time.sleep", ended)  # as a launcher does when rank 0 has failed
    entry_point(monkeypatch, lambda recipe: {})
    monkeypatch.setenv("RANK", "1")
    assert rlhf("train", recipe(SFT)).output == ""
    assert not Path("out").exists()
    result = rlhf("train", recipe("method: dpo\n"))
    assert (result.exit_code, result.output) == (143, "")


def test_another_rank_speaks_late_of_what_it_alone_has_met(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("rlhf.cli.common.time.sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    entry_point(monkeypatch, lambda recipe: (_ for _ in ()).throw(SetupError("no GPU")))
    result = rlhf("train", recipe(SFT))
    assert (result.exit_code, result.stderr, len(waited)) == (4, "error: no GPU\n", 1)


def test_an_output_folder_that_cannot_be_made() -> None:
    result = rlhf("train", recipe(SFT), "output_dir=rows.jsonl")
    assert (result.exit_code, result.stderr) == (
        2,
        "override 'output_dir=rows.jsonl': output_dir: rows.jsonl cannot be written: File exists\n",
    )


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


def test_a_run_whose_model_is_not_there_says_who_makes_it_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_point(monkeypatch, lambda recipe: pytest.fail("must not start"))
    recipe(SFT.replace("dir: out", "dir: made"), "1_sft.yaml")
    result = rlhf("train", recipe(SFT.replace("base", "made/final"), "2_sft.yaml"))
    said = "made/final is not there yet; 1_sft.yaml makes it; run that first, or all in order: rlhf run .\n"
    assert (result.exit_code, result.stderr) == (2, "2_sft.yaml:3: model.name_or_path: " + said)
    assert not Path("out").exists()


def test_an_error_of_a_run_says_where_its_key_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(recipe: object) -> None:
        raise RecipeError(["model.name_or_path: no tokenizer", "data.train.0.path: odd", "training: odd", "the rest"])

    entry_point(monkeypatch, fail)
    result = rlhf("train", recipe(SFT), "seed=1")
    assert result.stderr.splitlines() == [
        "r.yaml:3: model.name_or_path: no tokenizer",
        "r.yaml:4: data.train.0.path: odd",
        "r.yaml:1: training: odd",
        "the rest",
    ]
    assert status()["error"] == result.stderr.rstrip()
    with pytest.raises(RecipeError, match=r"^r\.yaml:3: model\.name_or_path"):
        run("r.yaml")


def test_chat_with_a_folder_that_is_not_there_names_no_key_and_loads_nothing() -> None:
    program = "import sys; from rlhf.cli import app\ntry: app(['chat', 'outputs/quickstart/dpo'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    said = "no such folder: outputs/quickstart/dpo (has the run that makes it finished?)\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_chat_with_a_model_that_does_not_load_names_no_key() -> None:
    Path("base").mkdir()
    Path("base/config.json").write_text("{}")
    result = rlhf("chat", "./base")
    assert result.exit_code == 2 and result.stderr.startswith("no tokenizer in ")


@pytest.mark.parametrize(("command", "code"), [("check", 0), ("train", 1)])
def test_a_reader_that_goes_away_is_an_error_only_where_files_are_written(command: str, code: int) -> None:
    program = "import rlhf.runs.start; rlhf.runs.start.imported = lambda name: print; from rlhf.cli import app; app()"
    arguments = [sys.executable, "-uc", program, command, recipe(SFT)]
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", code)
    process.stderr.close()
