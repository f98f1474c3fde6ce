"""Grids by their public name: their table and its functions, and GITS, which calls a network.

>>> from timonel import VP, grids
>>> grids.make("karras", VP.from_schedule(), 3).steps
3
"""

from __future__ import annotations

from .core.grids import GRIDS as GRIDS
from .core.grids import Grid as Grid
from .core.grids import GridSpec as GridSpec
from .core.grids import ancestral as ancestral
from .core.grids import bounds as bounds
from .core.grids import churn as churn
from .core.grids import custom_sigmas as custom_sigmas
from .core.grids import custom_times as custom_times
from .core.grids import cut as cut
from .core.grids import make as make
from .core.grids import restart as restart
from .core.grids import stretched as stretched
from .core.grids import usual as usual
from .core.grids.choose import choose as choose
from .engine.gits import gits as gits
from .engine.gits import gits_cost as gits_cost
