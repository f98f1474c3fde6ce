"""timonel: take the helm of diffusion sampling.

>>> import timonel as tm
>>> print(tm.Sampler("dpmpp_2m/karras", steps=2).compile(tm.VP.from_schedule()))
dpmpp_2m on karras: 2 steps, 2 network calls, order 2, deterministic, denoised basis
   0  step 0    time  999.0000  sigma/alpha   14.61464  x' = +0.02922·x +0.99758·h0
   1  step 1    time    0.0000  sigma/alpha    0.02917  x' = +1.00000·h0

Names are imported when they are first used, so `import timonel` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "ArgumentError": "errors",
    "BrownianNoise": "noise",
    "EDM": "process",
    "Flow": "process",
    "GRIDS": "grids",
    "Grid": "grids",
    "Guidance": "guidance",
    "Handle": "pipelines.handle",
    "Helm": "pipelines.helm",
    "Hook": "hooks",
    "LatentRGB": "hooks.preview",
    "Level": "process",
    "Process": "process",
    "Recipe": "recipe",
    "Run": "run",
    "SOLVERS": "solvers",
    "Sampler": "sampler",
    "Scheduler": "pipelines.scheduler",
    "SeededNoise": "noise",
    "Table": "table",
    "TimonelError": "errors",
    "VP": "process",
    "begin": "loop",
    "cfg": "guidance",
    "checkpoint": "hooks.checkpoint",
    "collect": "hooks.story",
    "compare": "comparison",
    "doctor": "diagnosis",
    "edit": "hooks.control",
    "guard": "hooks.guard",
    "iterate": "loop",
    "preview": "hooks.preview",
    "progress": "hooks.progress",
    "replay": "recipe",
    "sample": "loop",
    "save_steps": "hooks.preview",
    "stop_when": "hooks.control",
    "trace": "hooks.trace",
    "tune": "tuning",
}
__all__ = ["__version__", *sorted(_WHERE)]

if TYPE_CHECKING:
    from .comparison import compare as compare
    from .diagnosis import doctor as doctor
    from .errors import ArgumentError as ArgumentError
    from .errors import TimonelError as TimonelError
    from .grids import GRIDS as GRIDS
    from .grids import Grid as Grid
    from .guidance import Guidance as Guidance
    from .guidance import cfg as cfg
    from .hooks import Hook as Hook
    from .hooks.checkpoint import checkpoint as checkpoint
    from .hooks.control import edit as edit
    from .hooks.control import stop_when as stop_when
    from .hooks.guard import guard as guard
    from .hooks.preview import LatentRGB as LatentRGB
    from .hooks.preview import preview as preview
    from .hooks.preview import save_steps as save_steps
    from .hooks.progress import progress as progress
    from .hooks.story import collect as collect
    from .hooks.trace import trace as trace
    from .loop import begin as begin
    from .loop import iterate as iterate
    from .loop import sample as sample
    from .noise import BrownianNoise as BrownianNoise
    from .noise import SeededNoise as SeededNoise
    from .pipelines.handle import Handle as Handle
    from .pipelines.helm import Helm as Helm
    from .pipelines.scheduler import Scheduler as Scheduler
    from .process import EDM as EDM
    from .process import VP as VP
    from .process import Flow as Flow
    from .process import Level as Level
    from .process import Process as Process
    from .recipe import Recipe as Recipe
    from .recipe import replay as replay
    from .run import Run as Run
    from .sampler import Sampler as Sampler
    from .solvers import SOLVERS as SOLVERS
    from .table import Table as Table
    from .tuning import tune as tune


def __getattr__(name: str) -> Any:
    if name == "SchedulerMixin":  # diffusers asks the package of a saved scheduler for it
        from diffusers.schedulers.scheduling_utils import SchedulerMixin

        return SchedulerMixin
    if name not in _WHERE:
        raise AttributeError(f"module 'timonel' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"timonel.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
