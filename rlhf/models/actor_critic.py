"""Policy and value model as one module: what PPO trains, and what one wrapper (DDP) sees every gradient of.

Three forms, from the largest to the smallest: a value model with a body of its own; a value model as an adapter on the policy's
base (`load.load_role`); a head on the policy's own hidden states, one forward pass for both (`ValueHead`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlhf.errors import RecipeError
from rlhf.models.policy import Policy
from rlhf.models.scalar import ScalarModel
from rlhf.tokens.segments import SegmentBatch


class ValueHead(nn.Module):
    """The value before each token from the policy's hidden state there. It starts at 0, the mean of centred rewards, so that it moves
    nothing at first; the value loss then trains the policy's body too.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        network = policy.transformer
        width = network.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1, dtype=torch.float32, device=network.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, states: Tensor) -> Tensor:
        """[N, H] -> [N] float32."""
        values: Tensor = self.head(states.to(self.head.weight.dtype)).squeeze(-1)
        return values


class ActorCritic(nn.Module):
    """The policy, and a value model of one of the three forms."""

    def __init__(self, policy: Policy, value_model: ScalarModel | ValueHead) -> None:
        super().__init__()
        self.policy = policy
        self.value_model = value_model

    def forward(
        self, batch: SegmentBatch, *, temperature: float, values: bool = True
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Log-probabilities and values of the scored tokens, [N] each; with `values=False` the log-probabilities alone."""
        if not values:
            logprobs: Tensor = self.policy(batch, temperature=temperature)
            return logprobs
        if not isinstance(self.value_model, ValueHead):
            return self.policy(batch, temperature=temperature), self.value_model(batch, per_token=True)
        scored, states = self.policy.with_states(batch, temperature=temperature)
        if states is None:
            raise RecipeError(
                f"ppo.value: shared needs the hidden states under the output head, and {type(self.policy.transformer).__name__} does "
                "not say which module that is; leave the key out"
            )
        return scored, self.value_model(states)
