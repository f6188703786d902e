"""Training has not moved: ten steps of every stage give the recorded numbers.

In the environment in which they were recorded the numbers are equal to the last bit. In another (another processor or
version of a library) they are near; not those of nf4, which rounds otherwise on a processor without AVX512. A case that was recorded in
an environment of its own names it. A change that means to move them records them again (`python -m tests.golden.cases`) and
says in its commit why.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden.cases import FILE, Case, cases, environment, run
from tests.golden.support import make_model, make_rows

GOLDEN = json.loads(FILE.read_text())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], tuple[str, str]]:
    """The model and the rows of a case, made once."""
    folder = tmp_path_factory.mktemp("golden")
    models = {model: make_model(model, folder / model) for model in ("llama", "gpt2")}
    rows = make_rows(folder)
    return lambda case: (models[case.model], rows[case.method])


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_ten_steps_give_the_recorded_numbers(
    case: Case, inputs: Callable[[Case], tuple[str, str]], tmp_path: Path
) -> None:
    if case.weights == "nf4":
        pytest.importorskip("bitsandbytes")
    expected = dict(GOLDEN["cases"][str(case)])
    found = run(case, *inputs(case), tmp_path / "run")
    if environment() == expected.pop("environment", GOLDEN["environment"]):
        assert found == expected
        return
    # One other rounding can draw another token, and then a PPO run is another run: only its first iteration is compared.
    if case.weights == "nf4":
        pytest.skip("the numbers of nf4 were recorded in another environment")
    steps = 1 if case.online else len(expected["loss"])
    for name in ("loss", "grad_norm"):
        assert found[name][:steps] == pytest.approx(expected[name][:steps], rel=1e-2, abs=1e-3)


def test_every_case_is_recorded() -> None:
    assert set(GOLDEN["cases"]) == {str(case) for case in cases()}
