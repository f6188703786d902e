"""How a model takes a batch: as segments in one flat row, or padded, one completion a row.

Shared by the policy and the scalar model. `auto` tries both on a small batch at construction and keeps segments only
where they give what the model's own padded forward gives: a model whose attention is not looked up in transformers'
registry, or that does more to its logits than one linear head (soft-capping, scaling), takes the padded path, and the
log says so.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.models.adapters import active, lora_layers
from rlhf.models.attention import use_attention
from rlhf.tokens.segments import Segment, SegmentBatch, collate

log = logging.getLogger(__name__)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and back. To switch takes milliseconds in a large model, so it happens only when needed."""
    training = module.training
    if training:
        module.eval()
    try:
        yield
    finally:
        if training:
            module.train()


class SegmentModule(nn.Module, ABC):
    """A transformers model, perhaps with adapters, that is run on `SegmentBatch`es.

    model: a transformers model, or a peft model around one. `segments` says how batches are run, `bf16` whether under
    bfloat16 autocast: the module carries its own precision, so training, scoring and sampling cannot differ in it.
    """

    def __init__(
        self, model: nn.Module, *, pad_token_id: int, bf16: bool, adapters: Sequence[str] | None = None
    ) -> None:
        """`adapters`: those of `model` that count for this module; None for a model that is this module's alone."""
        super().__init__()
        self.model = model
        self._adapters = adapters
        self._layers = lora_layers(model) if adapters is not None else []
        self.pad_token_id = pad_token_id
        self.bf16 = bf16
        self.segments = False

    @property
    def transformer(self) -> PreTrainedModel:
        """The transformers model, adapters injected or not."""
        return self.model.get_base_model() if self.has_adapters else self.model  # type: ignore[return-value,operator]

    @property
    def has_adapters(self) -> bool:
        return hasattr(self.model, "disable_adapter")

    def autocast(self) -> torch.autocast:
        """The context that every forward pass of this module runs in."""
        return torch.autocast(self.transformer.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def own_adapters(self) -> AbstractContextManager[None]:
        """The context in which this module's adapters count: several modules may share one base."""
        return nullcontext() if self._adapters is None else active(self._layers, self._adapters)

    @abstractmethod
    def probe(self, batch: SegmentBatch) -> Tensor:
        """What must not depend on how the batch is run, [N, ...]."""

    def choose_batching(self, batching: str) -> None:
        """`segments`, `padded`, or `auto`: segments where they are exact."""
        if batching == "padded":
            return
        before = use_attention(self.transformer)
        self.segments = True
        reason = self._why_not_segments(before) if batching == "auto" else None
        if reason is not None:
            log.warning("%s takes padded batches: %s", type(self.transformer).__name__, reason)
            self.segments = False
            use_attention(self.transformer, before)

    @torch.no_grad()
    def _why_not_segments(self, own_attention: str | None) -> str | None:
        """None where segments are exact to rounding: what the model gives padded, by its own attention."""
        config = self.transformer.config.get_text_config()
        for name in ("final_logit_softcapping", "attn_logit_softcapping"):
            if getattr(config, name, None):  # in bf16 the comparison below might take a soft cap for rounding
                return f"its config has {name}"
        device = self.transformer.device
        embedding: Any = self.transformer.get_input_embeddings()
        vocabulary = int(embedding.weight.shape[0])
        ids = [(i * 7919 + 13) % vocabulary for i in range(40)]
        segments = [Segment(ids[:7], [ids[7:12], ids[12:21]]), Segment(ids[21:24], [ids[24:30], ids[30:40]])]
        batch = collate(segments).to(device)
        training = self.training
        self.eval()
        try:
            ours = self.probe(batch).float()
            self.segments = False
            use_attention(self.transformer, own_attention)
            theirs = self.probe(batch).float()
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
            return (str(error).splitlines() or [type(error).__name__])[0]
        finally:
            self.segments = True
            use_attention(self.transformer)
            self.train(training)
        difference = float((ours - theirs).norm() / theirs.norm())
        exact = not self.bf16 and all(p.dtype in (torch.float32, torch.float64) for p in self.transformer.parameters())
        if difference <= (1e-4 if exact else 3e-2):
            return None
        return f"segments change its results by {difference:.1e} (relative)"
