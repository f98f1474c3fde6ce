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

from .version import VERSION as __version__

_WHERE = {
    "ArgumentError": "errors",
    "At": "core.process",
    "BrownianNoise": "core.noise",
    "EDM": "core.process",
    "Flow": "core.process",
    "GRIDS": "core.grids",
    "Grid": "core.grids",
    "Guidance": "core.guidance",
    "Handle": "engine.handle",
    "Helm": "pipelines.helm",
    "Hook": "core.hook",
    "LatentRGB": "hooks.rgb",
    "Process": "core.process",
    "Recipe": "make.recipe",
    "Run": "core.run",
    "SOLVERS": "core.solvers",
    "Sampler": "core.sampler",
    "Scheduler": "pipelines.sockets.scheduler",
    "SeededNoise": "core.noise",
    "Table": "core.table",
    "TimonelError": "errors",
    "VP": "core.process",
    "apg": "core.guidance",
    "autoguidance": "core.guidance",
    "begin": "engine.loop",
    "cfg": "core.guidance",
    "cfg_pp": "core.guidance",
    "cfg_zero": "core.guidance",
    "checkpoint": "hooks.checkpoint",
    "collect": "hooks.collect",
    "compare": "comparison",
    "doctor": "diagnosis",
    "edit": "hooks.control",
    "guard": "hooks.guard",
    "iterate": "engine.loop",
    "mambo": "core.guidance",
    "pag": "core.guidance",
    "preview": "hooks.preview",
    "progress": "hooks.progress",
    "replay": "make.recipe",
    "sample": "engine.loop",
    "save_steps": "hooks.preview",
    "seg": "core.guidance",
    "skip_layers": "core.guidance",
    "start": "engine.handle",
    "stop_when": "hooks.control",
    "tcfg": "core.guidance",
    "trace": "hooks.trace",
    "tune": "tuning",
    "zero_init": "core.guidance",
}
__all__ = ["__version__", *sorted(_WHERE)]

if TYPE_CHECKING:
    from .comparison import compare as compare
    from .core.grids import GRIDS as GRIDS
    from .core.grids import Grid as Grid
    from .core.guidance import Guidance as Guidance
    from .core.guidance import apg as apg
    from .core.guidance import autoguidance as autoguidance
    from .core.guidance import cfg as cfg
    from .core.guidance import cfg_pp as cfg_pp
    from .core.guidance import cfg_zero as cfg_zero
    from .core.guidance import mambo as mambo
    from .core.guidance import pag as pag
    from .core.guidance import seg as seg
    from .core.guidance import skip_layers as skip_layers
    from .core.guidance import tcfg as tcfg
    from .core.guidance import zero_init as zero_init
    from .core.hook import Hook as Hook
    from .core.noise import BrownianNoise as BrownianNoise
    from .core.noise import SeededNoise as SeededNoise
    from .core.process import EDM as EDM
    from .core.process import VP as VP
    from .core.process import At as At
    from .core.process import Flow as Flow
    from .core.process import Process as Process
    from .core.run import Run as Run
    from .core.sampler import Sampler as Sampler
    from .core.solvers import SOLVERS as SOLVERS
    from .core.table import Table as Table
    from .diagnosis import doctor as doctor
    from .engine.handle import Handle as Handle
    from .engine.handle import start as start
    from .engine.loop import begin as begin
    from .engine.loop import iterate as iterate
    from .engine.loop import sample as sample
    from .errors import ArgumentError as ArgumentError
    from .errors import TimonelError as TimonelError
    from .hooks.checkpoint import checkpoint as checkpoint
    from .hooks.collect import collect as collect
    from .hooks.control import edit as edit
    from .hooks.control import stop_when as stop_when
    from .hooks.guard import guard as guard
    from .hooks.preview import preview as preview
    from .hooks.preview import save_steps as save_steps
    from .hooks.progress import progress as progress
    from .hooks.rgb import LatentRGB as LatentRGB
    from .hooks.trace import trace as trace
    from .make.recipe import Recipe as Recipe
    from .make.recipe import replay as replay
    from .pipelines.helm import Helm as Helm
    from .pipelines.sockets.scheduler import Scheduler as Scheduler
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
