"""Whether one SDPA call for many segments is faster on a CPU than a call for each: attention alone, forward and backward.

    python -m benchmarks.attention --threads 1

The shapes are SmolLM2's: 9 heads, 3 for keys and values, head size 64. `runs` takes segments of one length in one call without a copy
(the most that any grouping can win); `padded` sorts segments of unlike length into groups, within a budget of padding. Both are
candidates: rlhf makes a call for each segment. Rounds are interleaved; figures are medians. One thread is measured in CPU time, which other
work on the machine moves little; several in wall time.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv

from benchmarks.publish import publish
from rlhf.models.attention import per_segment
from rlhf.models.attention.layout import Layout
from rlhf.tokens.segments import Span

HEADS, KV_HEADS, SIZE = 9, 3, 64
BUDGET = 0.1  # padding, as a share of a group's tokens
Attend = Callable[[Tensor, Tensor, Tensor, Layout], Tensor]


def one_by_one(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """What rlhf does: [1, H, T, D] to [1, T, H, D]."""
    return per_segment.attend(query, key, value, layout, window=None, scaling=None, dropout=0.0)


def runs(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """Segments of one length, as they lie, in one call. Bit for bit what a call for each gives."""
    count, repeats = len(layout.spans), HEADS // KV_HEADS
    q, k, v = (
        x[0].unflatten(1, (count, -1)).transpose(0, 1)
        for x in (query, repeat_kv(key, repeats), repeat_kv(value, repeats))
    )
    return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(0, 1)[None]


def padded(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """Segments of near lengths, padded to the longest of their group, in a call for each group."""
    lengths, repeats = [span.length for span in layout.spans], HEADS // KV_HEADS
    inputs = [x.split(lengths, 2) for x in (query, repeat_kv(key, repeats), repeat_kv(value, repeats))]
    out: list[Tensor] = [query] * len(lengths)
    for group in groups_of(lengths):
        width = lengths[group[0]]
        q, k, v = (
            torch.cat([torch.nn.functional.pad(pieces[i], (0, 0, 0, width - lengths[i])) for i in group])
            for pieces in inputs
        )
        for i, row in zip(group, scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2), strict=True):
            out[i] = row[: lengths[i]]
    return torch.cat(out)[None]


def groups_of(lengths: list[int]) -> list[list[int]]:
    """Longest first; a group takes segments as long as its padding stays within the budget."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        joined = [*groups[-1], i] if groups else []
        if joined and len(joined) * lengths[joined[0]] <= (1 + BUDGET) * sum(lengths[j] for j in joined):
            groups[-1] = joined
        else:
            groups.append([i])
    return groups


def layout_of(lengths: list[int]) -> Layout:
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    spans = (Span(start, length // 2, (length - length // 2,)) for start, length in zip(starts, lengths, strict=True))
    return Layout(tuple(spans), torch.device("cpu"))


def compare(
    lengths: list[int], candidate: Attend, rounds: int, clock: Callable[[], float]
) -> tuple[float, float, float]:
    """Milliseconds of a call for each segment, of the candidate, and the median of the rounds' ratios."""
    layout = layout_of(lengths)
    shapes = [(1, n, sum(lengths), SIZE) for n in (HEADS, KV_HEADS, KV_HEADS)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    gradient = torch.randn(1, sum(lengths), HEADS, SIZE)

    def seconds(attend: Attend) -> float:
        begin = clock()
        torch.autograd.grad(attend(*inputs, layout), inputs, gradient)
        return clock() - begin

    pairs = [(seconds(one_by_one), seconds(candidate)) for _ in range(rounds + 1)][1:]
    ours, theirs = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
    return ours, theirs, statistics.median(b / a for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    found, table = [], ["| segments | tokens each | candidate | a call each, ms | candidate, ms | ratio |"]
    table.append("|---|---|---|---|---|---|")
    for count in (8, 16, 64):
        for mean in (30, 70, 150, 300):
            draw = random.Random(mean)
            unlike = [int(mean * draw.uniform(0.5, 1.5)) for _ in range(count)]
            for name, lengths, candidate in (("runs", [mean] * count, runs), ("padded", unlike, padded)):
                ours, theirs, ratio = compare(lengths, candidate, arguments.rounds, clock)
                found.append([count, mean, name, ours, theirs, ratio])
                table.append(f"| {count} | {mean} | {name} | {ours:.1f} | {theirs:.1f} | {ratio:.2f} |")
    head = f"# Attention over segments on a CPU: one call for many segments\n\n`python -m benchmarks.attention --threads {arguments.threads}`. "
    head += "Forward and backward, float32, SmolLM2's shapes. `runs`: equal lengths, no copy. `padded`: lengths from half the mean to "
    head += f"one and a half of it, at most {BUDGET:.0%} padding. A ratio above 1: the candidate is slower.\n"
    publish("attention", head, table, found)


if __name__ == "__main__":
    main()
