"""How conditional and unconditional outputs are combined, and at which network calls.

`guided = uncond + scale·(cond - uncond)` on the raw output (Ho & Salimans 2022, arXiv 2207.12598);
scale = 1 is no guidance. Outside the interval the unconditional output is not computed at all. A
method (`apg`, `cfg_zero`, …) puts another function of the same outputs in the place of that sum.

| file | what |
|---|---|
| `outputs.py` | the outputs of a row, `Method`, and `guide`, which combines them for every loop |
| `methods.py` | the methods, as frozen dataclasses |
| `makers.py` | the functions that people call, with formulas and sources |
| `guidance.py` | `Guidance`, `cfg`, and what they say for every row of a table |
| `plan.py` | intervals, and one scale or one per step |
| `terms.py` | what is added of the outputs of worse networks |
| `worse.py` | the functions that people call for them |
| `words.py` | words of the command line, and plain data |
"""

from .guidance import CompiledGuidance, Guidance, assigned, cfg
from .makers import apg, cfg_pp, cfg_zero, mambo, tcfg, zero_init
from .methods import METHODS
from .outputs import Combined, Method, Outputs, Place, combine, guide, rescaled, stretch
from .plan import UNITS
from .terms import KINDS, Term
from .words import parsed
from .worse import autoguidance, pag, seg, skip_layers

__all__ = [
    "KINDS", "METHODS", "UNITS", "Combined", "CompiledGuidance", "Guidance", "Method", "Outputs",
    "Place", "Term", "apg", "assigned", "autoguidance", "cfg", "cfg_pp", "cfg_zero", "combine",
    "guide", "mambo", "pag", "parsed", "rescaled", "seg", "skip_layers", "stretch", "tcfg",
    "zero_init",
]  # fmt: skip
