"""The policy: a causal language model as one module from a batch of segments to log-probabilities.

Body, head and log-softmax sit inside one `forward`, because DDP, FSDP and ZeRO see only what goes through the wrapped
module's forward. The reference under LoRA is the same base with other adapters: no second copy of the base.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.models.adapters import START, active, lora_layers
from rlhf.models.attention import padded_inputs, segment_inputs
from rlhf.models.batching import SegmentModule
from rlhf.models.logprobs import head_logprobs, logits_logprobs
from rlhf.tokens.segments import IGNORE_INDEX, SegmentBatch, pad

FEW_BYTES = 2**22  # of float32 logits: so small a batch costs next to nothing


class Policy(SegmentModule):
    """`forward(batch)` gives the log-probability of every scored token, [N] float32."""

    def __init__(self, model: nn.Module, *, pad_token_id: int, batching: str = "auto", bf16: bool = False) -> None:
        super().__init__(model, pad_token_id=pad_token_id, bf16=bf16)
        self.choose_batching(batching)

    def forward(self, batch: SegmentBatch, *, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of `batch.targets` under the softmax at `temperature`, [N]."""
        return self.with_states(batch, temperature=temperature)[0]

    def with_states(self, batch: SegmentBatch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """The log-probabilities, and the hidden states that they are made of: before each scored token, [N, H]. No states from a
        network that does not say which of its modules is the head.
        """
        with self.autocast():
            return self._flat(batch, temperature) if self.segments else self._padded(batch, temperature)

    def _flat(self, batch: SegmentBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """All segments in one row; the head runs on the scored positions alone."""
        inputs = segment_inputs(batch.input_ids, batch.position_ids, batch.spans)
        hidden = self.transformer.base_model(**inputs).last_hidden_state[0][batch.sources]
        head = self.transformer.get_output_embeddings()
        logprobs = head_logprobs(hidden, head.weight, head.bias, batch.targets, temperature=temperature)
        return logprobs, hidden

    def _padded(self, batch: SegmentBatch, temperature: float) -> tuple[Tensor, Tensor | None]:
        """One completion a row, through the model's own forward: whatever it does to its logits counts."""
        padded = pad(batch, self.pad_token_id)
        labels = padded.labels[:, 1:]
        scored = labels != IGNORE_INDEX
        with _head_reads(self.transformer, scored) as states:
            logits = self.transformer(**padded_inputs(padded)).logits
        every = logits.shape[:2] == padded.labels.shape  # scored ones alone are never as many
        logits = logits[:, :-1][scored] if every else logits[0]
        return logits_logprobs(logits, labels[scored], temperature=temperature), next(iter(states), None)

    probe = forward


@contextmanager
def _head_reads(network: PreTrainedModel, scored: Tensor) -> Iterator[list[Tensor]]:
    """Within, the network's head gets the hidden states before the scored tokens alone, [B, T, H] -> [1, N, H]. They are put
    into the list, [N, H].

    scored: [B, T - 1] bool, whether the next token is. The head is the widest matrix, and most positions are prompts and
    padding. Where all logits are few it reads every position: a GEMM of other rows may round otherwise. What the network does to the logits afterwards (a scale, a soft cap) it does to each position alone.
    """

    head, states = network.get_output_embeddings(), list[Tensor]()
    if head is None:
        yield states
        return
    few = 4 * scored.numel() * head.weight.shape[0] < FEW_BYTES

    def gather(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        states.append(inputs[0][:, :-1][scored])
        return inputs if few else (states[0][None],)

    handle = head.register_forward_pre_hook(gather)
    try:
        yield states
    finally:
        handle.remove()


class Reference:
    """The policy that DPO and PPO stay close to; never trained, called without gradients.

    With adapters it is the policy as it started: its base with the adapters of the parent stage, or with none, so no second
    copy of the base. Without adapters it is a frozen copy. `other` is a policy loaded from elsewhere.
    """

    def __init__(self, policy: Policy, other: Policy | None = None) -> None:
        self._shared = other is None and policy.has_adapters
        self._policy = policy if self._shared else (other or copy.deepcopy(policy))
        if self._shared:
            self._layers = lora_layers(policy)
            self._adapters = [START] if any(START in layer.lora_A for layer in self._layers) else []
        else:
            self._policy.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, batch: SegmentBatch, *, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of `batch.targets`, [N]."""
        with active(self._layers, self._adapters) if self._shared else nullcontext():
            return self._policy(batch, temperature=temperature)  # type: ignore[no-any-return]
