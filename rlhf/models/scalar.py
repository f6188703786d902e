"""A scalar per completion or per token: the reward model and the value model.

Any body and one `Linear(hidden, 1)`. The reward is read at the completion's last real token, found by
position: pooling that looks for the pad token reads the wrong place where pad is EOS.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlhf.models.attention import padded_inputs, segment_inputs
from rlhf.models.batching import SegmentModule
from rlhf.models.scores import ScoreScale
from rlhf.tokens.segments import IGNORE_INDEX, SegmentBatch, pad


class ScalarModel(SegmentModule):
    """`forward(batch)` gives one score a completion, [M]; with `per_token`, one value before each scored token, [N].

    The head is float32 and starts at 0, so that every score does. A random head asks a network for scores that mean nothing, and
    training must first unlearn them: with N(0, 1/sqrt(hidden + 1)) (Stiennon et al. 2020) that took two thirds of a short run
    (docs/results.md).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        pad_token_id: int,
        batching: str = "auto",
        bf16: bool = False,
        adapters: Sequence[str] | None = None,
    ) -> None:
        super().__init__(model, pad_token_id=pad_token_id, bf16=bf16, adapters=adapters)
        width = self.transformer.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1, dtype=torch.float32, device=self.transformer.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.scale: ScoreScale | None = None  # of a trained reward model
        self.choose_batching(batching)

    def forward(self, batch: SegmentBatch, *, per_token: bool = False) -> Tensor:
        """The score at each completion's last token, [M]; `per_token`: the value before each scored token, [N]."""
        hidden = self._states(batch, per_token)
        scalars: Tensor = self.head(hidden.to(self.head.weight.dtype)).squeeze(-1)
        return scalars

    @torch.no_grad()
    def rescale(self, factor: float, shift: float) -> None:
        """From now on, every scalar is `factor` times what it was, plus `shift`."""
        self.head.weight *= factor
        self.head.bias.mul_(factor).add_(shift)

    def probe(self, batch: SegmentBatch) -> Tensor:
        return self._states(batch, per_token=True)

    def _states(self, batch: SegmentBatch, per_token: bool) -> Tensor:
        with self.own_adapters(), self.autocast():
            return self._hidden(batch, per_token)

    def _hidden(self, batch: SegmentBatch, per_token: bool) -> Tensor:
        """Hidden states [N, H] before each scored token, or [M, H] at each completion's last."""
        if self.segments:
            inputs = segment_inputs(batch.input_ids, batch.position_ids, batch.spans)
            flat = self.transformer.base_model(**inputs).last_hidden_state[0]
            return flat[batch.sources if per_token else batch.last]  # type: ignore[no-any-return]
        padded = pad(batch, self.pad_token_id)
        hidden = self.transformer.base_model(**padded_inputs(padded)).last_hidden_state
        if per_token:
            return hidden[:, :-1][padded.labels[:, 1:] != IGNORE_INDEX]  # type: ignore[no-any-return]
        return hidden[torch.arange(len(padded.last), device=hidden.device), padded.last]  # type: ignore[no-any-return]
