"""report.html stands alone, escapes what models write, and says what is missing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rlhf.evaluate import plots
from rlhf.evaluate.console import print_report
from rlhf.evaluate.report import choose_samples, render
from rlhf.evaluate.run import evaluate
from rlhf.evaluate.runs import read_run, runs_of
from rlhf.recipe.schema import EvalRecipe

Make = Callable[..., EvalRecipe]
VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use"}


class Page(HTMLParser):
    """Open tags, ids, text, and whatever does not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text, self.stack = "", []  # type: ignore[var-annotated]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.links.append(value or "")
            assert not name.startswith("on"), f"{name} on {tag}"

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def write_run(folder: Path, method: str, rows: list[dict[str, Any]], **status: Any) -> str:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {"state": "done", "method": method, "wall_seconds": 75.0, "peak_rss_mib": 1536.0} | status
    (folder / "status.json").write_text(json.dumps(content))
    (folder / "recipe.yaml").write_text(f"method: {method}\nnote: '<b>bold</b>'\n")
    return str(folder)


@pytest.fixture
def evaluated(recipe_of: Make, tmp_path: Path) -> tuple[EvalRecipe, dict[str, Any], list[dict[str, Any]]]:
    """A finished evaluation of two models: one trained by PPO, one whose run is lost, and a reward run on its own."""
    steps = range(1, 41)
    ppo = [{"step": i, "score": i / 9, "score/letters": i / 9, "kl": i / 5, "length": 9.0, "loss": 0.1} for i in steps]
    ppo[11]["findings"] = [
        {"name": "ends_less", "step": 12, "evidence": "2% of the samples end <b>", "advice": "Set missing_eos"}
    ]
    reward = [{"step": i, "loss": 0.7 - i / 99, "accuracy": 0.5 + i / 99, "margin": i / 20} for i in steps]
    recipe = recipe_of(
        "AB",
        models=[
            {"name": "A <script>alert(1)</script>", "name_or_path": recipe_of("A").models[0].name_or_path},
            {
                "name": "$B$ & co",
                "name_or_path": recipe_of("B").models[0].name_or_path,
                "run": write_run(tmp_path / "ppo", "ppo", ppo),
            },
        ],
        runs=[write_run(tmp_path / "reward", "reward", reward), str(tmp_path / "lost")],
    )
    report = evaluate(recipe)
    rows = [json.loads(line) for line in (Path(recipe.output_dir) / "samples.jsonl").read_text().splitlines()]
    return recipe, report, rows


def test_the_page_stands_alone(evaluated: tuple[EvalRecipe, dict[str, Any], list[dict[str, Any]]]) -> None:
    recipe, report, rows = evaluated
    rows[0]["models"]["$B$ & co"]["completion"] = "</pre><script>alert(2)</script><img src=x onerror=alert(3)>"
    rows[0]["prompt"] = "<b>prompt</b>"
    text = render(report, rows, runs_of(recipe))
    page = Page(text)
    assert page.stack == []
    assert page.tags["script"] == page.tags["link"] == page.tags["img"] == page.tags["b"] == 0
    assert "</pre><script>alert(2)</script><img" in page.text  # as text
    assert not re.search(r"https?://|@import", text)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not [i for i, n in Counter(page.ids).items() if n > 1]
    for model in report["models"]:
        assert model["name"] in page.text
    assert page.tags["svg"] == 3 + 3 + 3  # the overview, the reward run, the PPO run


def test_what_is_missing_is_stated(evaluated: tuple[EvalRecipe, dict[str, Any], list[dict[str, Any]]]) -> None:
    recipe, report, _ = evaluated
    page = Page((Path(recipe.output_dir) / "report.html").read_text())
    lost = recipe.runs[1]
    assert f"{lost}: there is no such folder." in report["notes"]
    assert f"{lost}: there is no such folder." in page.text
    assert "Not logged: " in page.text
    assert "Gradient norm" in page.text  # of a run that has no grad_norm
    assert "1 min 15 s" in page.text
    assert "1.50 GiB" in page.text
    assert "note: '<b>bold</b>'" in page.text


def test_what_went_wrong_in_training_is_told_beside_the_verdict(
    evaluated: tuple[EvalRecipe, dict[str, Any], list[dict[str, Any]]],
) -> None:
    recipe, report, _ = evaluated
    assert report["findings"][-1] == "In the training of $B$ & co (ppo), step 12: 2% of the samples end <b>."
    page = Page((Path(recipe.output_dir) / "report.html").read_text())
    assert "what went wrong" in page.text and "Set missing_eos" in page.text
    assert "The training doctor found nothing wrong." in page.text  # of the reward run
    assert next(run for run in report["runs"] if run["method"] == "ppo")["findings"][0]["name"] == "ends_less"


def test_a_run_with_less_than_everything(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    bare = read_run(str(folder))
    assert len(bare.missing) == 3
    assert any("no metrics.jsonl" in sentence for sentence in bare.missing)
    (folder / "recipe.yaml").write_text("method: data\n")
    assert not any("metrics" in sentence for sentence in read_run(str(folder)).missing)  # it has none to write
    (folder / "recipe.yaml").write_text("method: dpo\n")
    (folder / "metrics.jsonl").write_text('{"step": 2, "loss": null}\n{"step": 1, "loss": 0.5}\n{"step": 3, "lo')
    (folder / "status.json").write_text('{"state": "failed", "method": "dpo"}')
    broken = read_run(str(folder), "model")
    assert broken.series("loss") == ([1.0], [0.5])
    assert any("1 of the lines" in sentence for sentence in broken.missing)
    assert any("not done, it is failed" in sentence for sentence in broken.missing)


def test_samples_show_the_extremes_first() -> None:
    def row(i: int, gain: float) -> dict[str, Any]:
        return {"prompt": str(i), "models": {"A": {"scores": {"s": 1.0}}, "B": {"scores": {"s": 1.0 + gain}}}}

    gains = np.random.default_rng(0).permutation(40) - 20
    chosen = choose_samples([row(i, float(g)) for i, g in enumerate(gains)], ["A", "B"], "s")
    shown = [c["models"]["B"]["scores"]["s"] - 1 for c in chosen]
    assert shown[:6] == [19, 18, 17, -20, -19, -18]
    assert len({c["prompt"] for c in chosen}) == len(chosen) == 12
    assert chosen[0]["tag"] == "large gain (+19.00)"
    assert [len(choose_samples([row(i, i) for i in range(n)], ["A", "B"], "s")) for n in (1, 4, 7, 13)] == [1, 4, 7, 12]


def test_the_table_prints_names_as_they_are(
    evaluated: tuple[EvalRecipe, dict[str, Any], list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, report, _ = evaluated
    report["models"][1]["name"] = "B [bold]v2[/]"
    console = Console(width=120)
    print_report(report, console)
    assert "B [bold]v2[/]" in capsys.readouterr().out


def test_smoothing_keeps_a_straight_line_and_leaves_short_ones() -> None:
    assert plots.smoothed([1.0] * (plots.SMOOTHING_FROM - 1)) is None
    line = np.arange(60.0)
    smooth = plots.smoothed(line)
    assert smooth is not None
    np.testing.assert_allclose(smooth[5:-5], line[5:-5])


def test_figures_take_their_ink_from_the_page() -> None:
    figure = plots.lines({"a <b>": ([1, 2], [3, 4], "#123456"), "c": ([1, 2], [1, 1], "#654321")}, x="step", y="loss")
    assert figure.startswith("<svg")
    assert "currentColor" in figure
    assert "var(--grid)" in figure
    assert plots.INK not in figure
    assert "a &lt;b&gt;" in figure
    assert "#123456" in figure
