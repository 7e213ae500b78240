"""Progress: which step of a compile is running, on standard error, for people."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

Steps = Callable[[str], AbstractContextManager[None]]


def steps(show: bool | None) -> Steps:
    """A reporter of steps. `show` None means: only when standard error is a terminal.

    On a terminal a spinner names the running step; elsewhere a line says what took how long.
    """
    terminal = sys.stderr.isatty()
    if not (terminal if show is None else show):
        return lambda _: contextlib.nullcontext()

    from rich.console import Console

    # This very stream: capture keeps torch from printing by redirecting sys.stderr meanwhile.
    console = Console(file=sys.stderr, highlight=False)

    @contextlib.contextmanager
    def step(title: str) -> Iterator[None]:
        started = time.perf_counter()
        if terminal:
            with console.status(f"{title} ..."):
                yield
        else:
            yield
        console.print(f"[green]✓[/] {title} [dim]{time.perf_counter() - started:.1f} s[/]")

    return step
