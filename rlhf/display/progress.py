"""One look for every progress bar: done, elapsed, left, and a headline; plain lines where there is no terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET_SECONDS = 10.0  # between lines where there is no terminal to draw a bar on


class ProgressBar:
    """A bar over `total` units. `enabled=False` (every rank but the first) draws nothing."""

    def __init__(self, title: str, total: int, console: Console, *, done: int = 0, enabled: bool = True) -> None:
        self._title, self._total, self._done, self._console = title, total, done, console
        self._start, self._tokens, self._began, self._said = done, 0, time.monotonic(), 0.0
        self._lines = enabled and not console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[headline]}"),
            console=console,
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._bar.add_task(title, total=total, completed=done, headline="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, units: int, tokens: int) -> None:
        """`units` more are done, in which `tokens` tokens were sampled; the headline is their rate."""
        self._tokens += tokens
        rate = self._tokens / max(time.monotonic() - self._began, 1e-9)
        self.update(self._done + units, f"{rate:.0f} tokens/s")

    def say(self, what: str) -> None:
        """One line above the bar."""
        self._console.print(what, markup=False, highlight=False, soft_wrap=True)

    def update(self, done: int, headline: str) -> None:
        """`done` units are done in all."""
        self._done = done
        self._bar.update(self._task, completed=done, headline=headline)
        now = time.monotonic()
        if self._lines and (now - self._said > QUIET_SECONDS or done == self._total):
            self._said = now
            left = (now - self._began) / max(done - self._start, 1) * (self._total - done)
            line = f"{self._title} {done}/{self._total}  eta {int(left) // 60}:{int(left) % 60:02d}  {headline}"
            self._console.print(line, highlight=False, soft_wrap=True)


def say(console: Console, what: str) -> None:
    """One line for work that has no bar of its own: what is done now."""
    console.print(f"{what} ...", markup=False, highlight=False, soft_wrap=True)
