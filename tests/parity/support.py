"""What the parity tests share: pairs of unlike length, a stage without its loop, and comparisons."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf.recipe.training import TrainRecipe
from rlhf.tokens.segments import Segment
from rlhf.tokens.template import Renderer
from rlhf.tokens.tokenizer import load_tokenizer
from rlhf.train.run import make_accelerator
from rlhf.train.setup import Setup

try:
    TRL = importlib.metadata.version("trl")
except importlib.metadata.PackageNotFoundError:
    TRL = ""
needs_trl = pytest.mark.skipif(not TRL.startswith("1."), reason="written against trl 1.16")

PAIRS = [
    ("The film was", " good", " bad, and there is no answer to the question of what it is that you like"),
    ("I like", " the film and the answer, and how well you are today, my good friend", " no film"),
    ("Question: what is a good film?\n\nAnswer:", " the one that you like.", " 1 2 3"),
    ("\n\nHuman: hello there, how are you?\n\nAssistant:", " I am well, thank you.", " here"),
    ("you", " are", " is"),
    ("좋은 영화", " 무엇을 도와드릴까요?", "?"),
]
PAIR_ROWS = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
DEMONSTRATIONS = [{"prompt": p, "completion": c} for p, c, _ in PAIRS]
TURNS = [
    [{"role": "user", "content": "The film was"}],
    [{"role": "system", "content": "You like film."}, {"role": "user", "content": " what is\n\na good film? "}],
    [
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": "how are you?"},
        {"role": "user", "content": "well, thank you. 좋은 영화"},
    ],
]
ANSWERS = [("good", "bad\n"), ("the one that you like.", " 1 2 3"), ("yes", "도와드릴까요?")]
CHAT_PAIRS = [
    {"prompt": t, "chosen": [{"role": "assistant", "content": c}], "rejected": [{"role": "assistant", "content": r}]}
    for t, (c, r) in zip(TURNS, ANSWERS, strict=True)
]


def trl(module: str) -> Any:
    """A module of TRL, whose import is noisy; skips where something that it needs is missing."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return importlib.import_module(module)
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"{module}: {error}")


def arguments(config: Any, folder: Path, **options: Any) -> Any:
    """TRL's settings, brought to what is compared: float32, no checkpointing, no cut, every row kept."""
    return config(
        output_dir=str(folder),
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        max_length=None,
        per_device_train_batch_size=len(PAIRS),
        disable_tqdm=True,
        **options,
    )


def rendered(recipe: TrainRecipe, rows: Sequence[Mapping[str, Any]]) -> list[Segment]:
    """Rows as the recipe tokenises them."""
    renderer = Renderer(load_tokenizer(recipe.model.name_or_path), recipe.data.template)
    return renderer.batch_segments([dict(row) for row in rows])


def setup(recipe: TrainRecipe, segments: Sequence[Segment]) -> Setup:
    """What a stage is built from, without files."""
    return Setup(recipe, make_accelerator(recipe), load_tokenizer(recipe.model.name_or_path), segments, [])


@torch.no_grad()
def perturb(module: nn.Module, seed: int, scale: float = 0.03) -> None:
    """Move every parameter a little, so that the policy is no longer its reference."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter += scale * torch.randn(parameter.shape, generator=generator)


def worst(ours: Tensor, theirs: Tensor) -> float:
    """The largest relative difference of any element; of one near zero, relative to a tenth of the tensor's own size."""
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach(), theirs.detach()
    size = theirs.pow(2).mean().sqrt()
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=0.1 * size)).max())


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def worst_gradient(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest relative difference of any parameter's gradient, in norm; the parameters must be the same.

    One that cancels to zero (the bias before a reward head, in a difference of scores) counts against the others' size.
    """
    assert ours.keys() == theirs.keys()
    largest = max(float(g.norm()) for g in theirs.values())
    return max(float((ours[n] - g).norm() / g.norm().clamp(min=1e-3 * largest)) for n, g in theirs.items())
