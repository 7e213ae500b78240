"""Early calls: the coordinator has its slices started before it imports anything else."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from .functions import functions_of
from .invoking import functions_client
from .start import ON_DEMAND, initialization_type
from .warmup import WarmUp, start_slice


def start_slices(manifest: Path) -> tuple[Any, WarmUp]:
    """The client that calls the slices of a plan, and the calls that start them, under way where this
    environment starts because a request waits for it; else a warm-up that has nothing to do.
    """
    plan = json.loads(manifest.read_text())
    functions = functions_client(plan["timeout_s"])
    if not plan["warm_up"] or initialization_type() != ON_DEMAND:
        return functions, WarmUp(lambda _: {}, ())
    names = functions_of(plan)
    warm_up = WarmUp(partial(start_slice, functions, names, plan["id"]), list(names))
    warm_up.begin()
    return functions, warm_up
