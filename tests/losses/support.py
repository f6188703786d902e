"""What the numerical tests share: random numbers, ragged masks, partitions, and the comparison with an oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.losses import LossOutput, policy_loss, value_loss

TOLERANCE = 1e-10
check = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


class Numbers:
    """Normal random numbers from a drawn seed; rounded to `decimals`, so that ties, zeros and boundaries happen."""

    def __init__(self, seed: int, decimals: int | None) -> None:
        self.rng = np.random.default_rng(seed)
        self.decimals = decimals

    def __call__(self, *shape: int, scale: float = 1.0, offset: float = 0.0) -> np.ndarray:
        numbers = offset + scale * self.rng.standard_normal(shape)
        return numbers if self.decimals is None else np.round(numbers, self.decimals)

    def garbage(self, *shape: int) -> np.ndarray:
        """What uninitialised padding may hold."""
        return self.rng.choice([np.nan, np.inf, -np.inf, 1e300, -1e300, 12345.678, -0.0], size=shape)


seeds = st.integers(0, 2**32 - 1)
counts = st.integers(1, 7)
numbers = st.builds(Numbers, seeds, st.sampled_from([None, None, 1, 0]))
smooth_numbers = st.builds(Numbers, seeds, st.none())


@st.composite
def completion_masks(draw: st.DrawFn, rows: int = 4, columns: int = 6) -> np.ndarray:
    """Completions of 1 to `columns` tokens, padded on the right, sometimes on the left too, [M, C]."""
    lengths = np.array(draw(st.lists(st.integers(1, columns), min_size=1, max_size=rows)))[:, None]
    left = draw(st.sampled_from([0, 0, 1, 2]))
    places = np.arange(left + draw(st.integers(lengths.max(), columns + 1)))[None, :] - left
    return (places >= 0) & (places < lengths)


@st.composite
def any_masks(draw: st.DrawFn, rows: int = 4, columns: int = 6) -> np.ndarray:
    """Any mask: holes, empty rows, nothing true at all."""
    shape = (draw(st.integers(1, rows)), draw(st.integers(1, columns)))
    flat = draw(st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return np.array(flat).reshape(shape)


def masks() -> st.SearchStrategy[np.ndarray]:
    return completion_masks() | any_masks()


def tensor(array: object, grad: bool = False) -> Tensor:
    array = np.asarray(array)
    return torch.tensor(array, dtype=None if array.dtype == bool else torch.float64, requires_grad=grad)


def assert_close(ours: object, expected: object) -> None:
    ours = ours.detach().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    assert ours.shape == np.shape(expected)
    np.testing.assert_allclose(ours, expected, rtol=TOLERANCE, atol=TOLERANCE)


def assert_output(output: LossOutput, expected: Mapping[str, float]) -> None:
    """The loss and every logged metric are the oracle's; a metric without an oracle is an error."""
    assert set(output.metrics) == set(expected)
    (loss_name,) = [name for name in expected if name.split("/")[-1] == "loss"]
    assert_close(output.loss, expected[loss_name])
    for name, value in expected.items():
        assert_close(output.metrics[name], value)
        assert not output.metrics[name].requires_grad, name


def numeric_gradient(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of an oracle."""
    gradient = np.zeros(at.shape)
    for place in np.ndindex(*at.shape):
        up, down = at.copy(), at.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


def assert_gradient(loss: Tensor, wrt: Tensor, function: Callable[[np.ndarray], float]) -> None:
    """autograd's gradient is the slope of the oracle."""
    (ours,) = torch.autograd.grad(loss, wrt, retain_graph=True)
    expected = numeric_gradient(function, wrt.detach().numpy())
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-6, atol=1e-8)


def partition(count: int, seed: int) -> list[np.ndarray]:
    """The indices 0..count-1 dealt to up to four microbatches, one of which may be empty."""
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, rng.integers(1, 5), size=count)
    return [np.flatnonzero(owner == part) for part in range(4)]


def assert_adds_up(share: Callable[[np.ndarray], LossOutput], whole: np.ndarray, parts: list[np.ndarray]) -> None:
    """Losses and metrics of the microbatches, normalised by the whole step's count, sum to those of the whole."""
    full = share(whole)
    shares = [share(part) for part in parts]
    assert_close(sum(part.loss for part in shares), full.loss.detach().numpy())
    for name, value in full.metrics.items():
        assert_close(sum(part.metrics[name] for part in shares), value.numpy())


def policy_of(
    logprobs: Tensor | np.ndarray,
    old: Tensor | np.ndarray,
    advantages: Tensor | np.ndarray,
    mask: np.ndarray,
    cliprange: float = 0.2,
    num_tokens: int | Tensor | None = None,
) -> LossOutput:
    """`policy_loss` of the tokens inside the mask; all arrays [M, C]."""
    return policy_loss(
        logprobs=_inside(logprobs, mask),
        old_logprobs=_inside(old, mask),
        advantages=_inside(advantages, mask),
        cliprange=cliprange,
        num_tokens=max(1, int(mask.sum())) if num_tokens is None else num_tokens,
    )


def value_of(
    values: Tensor | np.ndarray,
    old: Tensor | np.ndarray,
    returns: Tensor | np.ndarray,
    mask: np.ndarray,
    cliprange: float = 0.2,
    num_tokens: int | Tensor | None = None,
) -> LossOutput:
    """`value_loss` of the tokens inside the mask; all arrays [M, C]."""
    return value_loss(
        values=_inside(values, mask),
        old_values=_inside(old, mask),
        returns=_inside(returns, mask),
        cliprange_value=cliprange,
        num_tokens=max(1, int(mask.sum())) if num_tokens is None else num_tokens,
    )


def _inside(values: Tensor | np.ndarray, mask: np.ndarray) -> Tensor:
    return (values if isinstance(values, Tensor) else tensor(values))[tensor(mask)]
