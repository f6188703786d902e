"""`rlhf run FOLDER`: order, skipping, what must run again, and what status.json tells a launcher."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from rich.console import Console

from rlhf.cli.folder import StageFailed, read_stages, run_folder
from rlhf.errors import RecipeError
from rlhf.recipe import load
from rlhf.runs.manifest import atomic_folder, write_atomically
from rlhf.runs.status import Status, inputs, peak_rss_mib, read_status

ROOT = Path(__file__).resolve().parents[2]
runner = import_module("rlhf.cli.folder")
RUN_STAGE = runner._run_stage
MODEL = "model: {{name_or_path: {}}}\ndata: {{train: out/data}}\n"
STAGES = {
    "1_data.yaml": "method: data\noutput_dir: out/data\nsources: rows.jsonl\n",
    "2_sft.yaml": "method: sft\noutput_dir: out/sft\n" + MODEL.format("base"),
    "3_reward.yaml": "method: reward\noutput_dir: out/reward\n" + MODEL.format("base"),
    "10_dpo.yaml": "method: dpo\noutput_dir: out/dpo\n" + MODEL.format("out/sft/final"),
}


class Folder:
    """A folder of recipes whose stages run in this process and only note that they did."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails: dict[str, BaseException] = {}

    def run_stage(self, stage: runner.Stage) -> int:
        name = stage.file.stem
        self.ran.append(name)
        try:
            with Status(stage.recipe):
                Path(stage.recipe.output_dir, "checkpoints").mkdir(exist_ok=True)
                Path(stage.recipe.output_dir, "checkpoints", "step").touch()
                if name in self.fails:
                    raise self.fails.pop(name)
        except MemoryError:
            return 4
        return 0

    def run(self) -> list[str]:
        """Run the folder; which stages ran."""
        self.ran = []
        self.console = Console(record=True, width=100, file=io.StringIO())
        run_folder("recipes", self.console)
        return self.ran


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    Path("rows.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    Path("recipes").mkdir()
    Path("recipes/README.md").touch()
    for name, text in STAGES.items():
        Path("recipes", name).write_text(text)
    folder = Folder()
    monkeypatch.setattr(runner, "_run_stage", folder.run_stage)
    return folder


def edit(name: str, more: str) -> None:
    Path("recipes", name).write_text(STAGES[name] + more)


def test_all_run_in_numeric_order_then_none(folder: Folder) -> None:
    assert folder.run() == ["1_data", "2_sft", "3_reward", "10_dpo"]
    assert folder.run() == []
    lines = folder.console.export_text().splitlines()
    assert lines[:4] == [
        "[1/4] 1_data.yaml (data) done before; skipped",
        "[2/4] 2_sft.yaml (sft) done before; skipped",
        "[3/4] 3_reward.yaml (reward) done before; skipped",
        "[4/4] 10_dpo.yaml (dpo) done before; skipped",
    ]
    status = read_status("out/dpo")
    row = next(line for line in lines[4:] if "10_dpo.yaml" in line)
    assert row.split("│")[2:5] == [
        " skipped ",
        f" {status['wall_seconds']:<12.1f} ",
        f" {status['peak_rss_mib']:<8.1f} ",
    ]


def test_a_failed_stage_stops_the_folder_with_its_exit_code_and_goes_on_later(folder: Folder) -> None:
    folder.fails["3_reward"] = MemoryError()
    with pytest.raises(StageFailed) as caught:
        folder.run()
    assert caught.value.exit_code == 4
    assert str(caught.value) == "recipes/3_reward.yaml failed; once mended, go on from there with: rlhf run recipes"
    assert folder.ran == ["1_data", "2_sft", "3_reward"]
    assert read_status("out/reward")["state"] == "failed"
    assert folder.run() == ["3_reward", "10_dpo"]
    assert not Path("out/reward/checkpoints.old").exists()  # same inputs: it resumes


def test_a_changed_recipe_runs_again_and_with_it_what_reads_from_it(folder: Folder) -> None:
    folder.run()
    edit("2_sft.yaml", "seed: 1\n")
    assert folder.run() == ["2_sft", "10_dpo"]
    assert Path("out/dpo/checkpoints.old/step").exists()  # its inputs are new: it starts afresh
    assert Path("out/sft/checkpoints.old/step").exists()  # its recipe is
    assert not Path("out/reward/checkpoints.old").exists()
    assert folder.run() == []


def test_new_data_runs_everything_again(folder: Folder) -> None:
    folder.run()
    edit("1_data.yaml", "seed: 1\n")
    assert folder.run() == ["1_data", "2_sft", "3_reward", "10_dpo"]


def test_a_stop_between_two_stages_does_not_hide_that_the_later_one_is_stale(folder: Folder) -> None:
    folder.run()
    edit("2_sft.yaml", "seed: 1\n")
    with Status(load("recipes/2_sft.yaml")):
        pass
    assert folder.run() == ["10_dpo"]


def test_every_recipe_is_checked_before_the_first_starts(folder: Folder) -> None:
    edit("3_reward.yaml", "rewards: {}\n")
    edit("10_dpo.yaml", "dpo: {beta: -1}\n")
    Path("recipes/4_again.yaml").write_text(STAGES["1_data.yaml"].replace("rows.jsonl", "row.jsonl"))
    with pytest.raises(RecipeError) as caught:
        folder.run()
    assert caught.value.problems == [
        "recipes/3_reward.yaml:5: rewards: unknown key; did you mean 'reward'?",
        "recipes/4_again.yaml:3: sources.0.path: no such file: row.jsonl; did you mean 'rows.jsonl'?",
        "recipes/4_again.yaml:2: output_dir: out/data already belongs to 1_data.yaml",
        "recipes/10_dpo.yaml:5: dpo.beta: must be more than 0, got -1",
    ]
    assert folder.ran == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("out", "out: no numbered recipes here, such as 1_sft.yaml"),
        (
            "recipes/2_sft.yaml",
            "recipes/2_sft.yaml: rlhf run takes a folder; for one recipe: rlhf train recipes/2_sft.yaml",
        ),
    ],
)
def test_folders_that_cannot_be_run(folder: Folder, path: str, message: str) -> None:
    Path("out").mkdir()
    with pytest.raises(RecipeError) as caught:
        run_folder(path)
    assert caught.value.problems == [message]


def test_many_processes_cannot_run_a_folder(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="launch one stage: accelerate launch -m rlhf train"):
        run_folder("recipes")


def test_a_changed_reward_function_runs_its_stage_again(folder: Folder) -> None:
    Path("judge.py").write_text("def score(prompts, completions):\n    return [0.0] * len(completions)\n")
    ppo = "method: ppo\noutput_dir: out/ppo\n" + MODEL.format("base") + "ppo: {rewards: [{callable: judge.py:score}]}\n"
    Path("recipes/11_ppo.yaml").write_text(ppo)
    assert "11_ppo" in folder.run()
    assert folder.run() == []
    Path("judge.py").write_text(Path("judge.py").read_text().replace("0.0", "1.0"))
    assert folder.run() == ["11_ppo"]


def test_a_training_run_is_an_input_by_its_models_content(folder: Folder) -> None:
    final = Path("out/sft/final")
    folder.run()
    with atomic_folder(final) as made:
        (made / "model.txt").write_text("1")
    assert folder.run() == ["10_dpo"]
    with Status(load("recipes/2_sft.yaml")):  # again, to the same model
        pass
    assert folder.run() == []
    with atomic_folder(final) as made:
        (made / "model.txt").write_text("2")
    assert folder.run() == ["10_dpo"]


def test_inputs_are_the_runs_that_a_recipe_reads_from(folder: Folder) -> None:
    dpo = load("recipes/10_dpo.yaml", ["data.eval=out/data/test/*.parquet", "dpo.reference=/", "model.dtype=bfloat16"])
    assert inputs(dpo) == {}
    with Status(load("recipes/1_data.yaml")), Status(dpo):
        pass
    finished = read_status("out/data")["finished_at"]
    assert finished is not None
    assert inputs(dpo) == {"out/data": finished}


def test_an_interrupted_run_says_so(folder: Folder) -> None:
    with pytest.raises(KeyboardInterrupt), Status(load("recipes/2_sft.yaml")):
        raise KeyboardInterrupt
    status = read_status("out/sft")
    assert (status["state"], status["exit_code"], status["error"]) == ("interrupted", 130, "interrupted")
    assert status["wall_seconds"] >= 0
    assert 1 < status["peak_rss_mib"] <= peak_rss_mib()


def test_a_write_that_breaks_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_atomically(path, "{}")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("status.json", "{}")]
    path.write_text('{"state": "do')
    assert read_status(tmp_path) is None


def test_a_stage_runs_in_its_own_process_and_passes_its_exit_code_on(folder: Folder, monkeypatch, capfd) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    stage = read_stages(Path("recipes"))[1]
    edit("2_sft.yaml", "sed: 1\n")  # spoilt after it was read
    assert RUN_STAGE(stage) == 2
    assert capfd.readouterr().err == "recipes/2_sft.yaml:5: sed: unknown key; did you mean 'seed'?\n"


def test_a_killed_stage_has_the_shells_exit_code(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("dies").write_text("#!/bin/sh\nkill -9 $$\n")
    Path("dies").chmod(0o755)
    monkeypatch.setattr(sys, "executable", "./dies")
    assert RUN_STAGE(read_stages(Path("recipes"))[0]) == 137


def test_building_data_for_real(folder: Folder) -> None:
    pytest.importorskip("rlhf.data.build")
    pytest.importorskip("pyarrow")
    for name in ("2_sft.yaml", "3_reward.yaml", "10_dpo.yaml"):
        Path("recipes", name).unlink()
    Path("rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"p{i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(8))
    )
    edit("1_data.yaml", "steps:\n  - split: {test: 0.5}\n")
    command = [sys.executable, "-m", "rlhf", "run", "recipes"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_status("out/data")["state"] == "done"
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "[1/1] 1_data.yaml (data) done before; skipped" in again.stdout
