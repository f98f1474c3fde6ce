"""A pytest plugin that runs diffusers' tests on timonel's schedulers and records what becomes of
each test.

`PEERS_SOCKET`: `diffusers` changes nothing; `compat` makes `diffusers.<Name>` the class of
`timonel.compat`; `scheduler` makes `get_dummy_components` hand out `timonel.Scheduler`.
`PEERS_RECORD`: the JSON file to write.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import random
import re
import sys
import types
from pathlib import Path
from typing import Any

# before the checkout's conftest puts its `src` on the path: the installed one is tested
import diffusers
import numpy as np
import pytest
import torch

import timonel
import timonel.compat as compat
from support.pipes.video_new import without_torchvision

from . import parameterized

SOCKETS = ("diffusers", "compat", "scheduler")
SOCKET = os.environ.get("PEERS_SOCKET", "diffusers")
NAMES = [name for name in compat.__all__ if name.endswith("Scheduler")]
THEIRS = {name: getattr(diffusers, name) for name in NAMES}
FROM_NETWORK = re.compile(
    "OSError|LocalEntryNotFound|OfflineMode|ConnectionError|couldn't connect|MaxRetry"
)
LONGEST = 300  # characters kept of an error
outcomes: dict[str, dict[str, str]] = {}


def pytest_configure(config: pytest.Config) -> None:
    if SOCKET not in SOCKETS:
        raise pytest.UsageError(f"PEERS_SOCKET={SOCKET!r} is none of {SOCKETS}")
    torch.set_num_threads(1)
    for name, stand_in in (
        ("parameterized", parameterized),
        ("requests_mock", types.ModuleType("requests_mock")),
    ):
        if (
            importlib.util.find_spec(name) is None
        ):  # the second is imported by tests that are not run
            sys.modules[name] = stand_in
    without_torchvision()
    if SOCKET == "compat":
        for name in NAMES:
            setattr(diffusers, name, getattr(compat, name))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests whose name matches `PEERS_WITHOUT`, and dresses those that remain."""
    without = re.compile(os.environ.get("PEERS_WITHOUT") or "(?!)")
    gone = [item for item in items if without.search(item.name)]
    items[:] = [item for item in items if not without.search(item.name)]
    config.hook.pytest_deselected(items=gone)
    if SOCKET == "scheduler":
        for cls in {getattr(item, "cls", None) for item in items} - {None}:
            for base in cls.__mro__:
                if "get_dummy_components" in vars(base):
                    base.get_dummy_components = dressed(vars(base)["get_dummy_components"])


def dressed(make: Any) -> Any:
    """`get_dummy_components` with its schedulers replaced."""
    if hasattr(make, "peers_dressed"):
        return make

    @functools.wraps(make)
    def components(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        return {key: ours(value) for key, value in made.items()} if isinstance(made, dict) else made

    components.peers_dressed = True  # type: ignore[attr-defined]
    return components


def ours(component: Any) -> Any:
    """`timonel.Scheduler` for a scheduler of a class that `timonel.compat` has too; anything else
    as it is.
    """
    if type(component) not in THEIRS.values():
        return component
    return timonel.Scheduler.from_config(component.config)


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """Many of the tests draw their inputs without a seed."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    note = outcomes.setdefault(item.nodeid, {"outcome": "passed", "error": ""})
    if report.skipped and note["outcome"] == "passed":
        note["outcome"] = "skipped"
    if report.failed:
        error = call.excinfo.exconly().strip() if call.excinfo else str(report.longrepr)
        note.update(outcome="failed", error=" ".join(error.split())[:LONGEST])
        if FROM_NETWORK.search(error):
            note["outcome"] = "network"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = Path(os.environ["PEERS_RECORD"])
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(outcomes, indent=1, sort_keys=True), encoding="utf-8")
    fresh.replace(path)
