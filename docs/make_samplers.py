"""Writes docs/samplers.md and the lists of samplers and grids in both READMEs.

python docs/make_samplers.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch

from support.models import Gaussian, Mixture, drive, ends, lam_grid, propagate, slope, variance
from support.places import DOCS, ROOT
from timonel.core import names, solvers
from timonel.core.grids import GRIDS, GridSpec
from timonel.core.process import EDM
from timonel.core.solvers import CONTROLLED, SOLVERS, SolverSpec
from timonel.core.table import Table

PAGE = DOCS / "samplers.md"
READMES = (ROOT / "README.md", ROOT / "README.es.md")
STEPS, WIDE = (64, 96, 144), EDM(0.002, 700.0)
OPTIONS = {"edm": {"s_churn": 4.0}}  # below the cap, so that the churn per step falls with N


def tables(name: str, start: float) -> list[Table]:
    return [
        solvers.make(name, lam_grid(WIDE, n, start, bend=0.4), **OPTIONS.get(name, {}))
        for n in STEPS
    ]


def deterministic_order(name: str) -> float:
    """Slope of the global error on the mixture, from near pure noise, on an uneven grid."""
    model, x = (
        Mixture(),
        torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    )
    exact = model.solve(x, *ends(lam_grid(WIDE, 1, -6.0)))
    return slope(
        list(STEPS), [float((drive(t, model, x) - exact).abs().max()) for t in tables(name, -6.0)]
    )


def weak_order(name: str) -> float:
    """Slope of the error of the variance on Gaussian data, propagated exactly."""
    data, errors = Gaussian(), []
    for table in tables(name, -2.0):
        first, last = table.level(0), table.level(table.nfe)
        result = propagate(table, data.affine, first.alpha * data.mean, data.spread(first))[-1]
        errors.append(float((variance(result) - data.spread(last) ** 2).abs().max()))
    return slope(list(STEPS), errors)


def row(*cells: object) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def measured_order(name: str, spec: SolverSpec) -> str:
    if spec.order == 0:
        return "-"
    return f"{(weak_order if spec.stochastic else deterministic_order)(name):.2f}"


def sampler_row(name: str, spec: SolverSpec, measured: str) -> str:
    kind = "stochastic" if spec.stochastic else "deterministic"
    facts = (spec.calls, kind, quoted(spec.options), spec.reference)
    return row(f"`{name}`", spec.order or "-", measured, *facts)


def grid_row(name: str, spec: GridSpec) -> str:
    return row(f"`{name}`", what(spec.make), spec.space, quoted(spec.options), spec.reference)


def listed(readme: str) -> str:
    """The text of a README with the lists of all samplers and grids."""
    readme = re.sub(r"(?m)^(Samplers: )`.*`", rf"\1{quoted(SOLVERS)}", readme)
    return re.sub(r"(?m)^(Grids[^:\n]*: )`.*`", rf"\1{quoted(GRIDS)}", readme)


def what(function: Callable[..., object]) -> str:
    """The first line of a docstring, up to its first full stop."""
    line = (function.__doc__ or "").strip().splitlines()[0]
    return line.split(". ")[0].rstrip(".").replace("|", "/")


def alias_rows() -> list[str]:
    rows = []
    for alias, named in names.ALIASES.items():
        options = "".join(f", {k}={v}" for k, v in named.options.items())
        noise = f", noise={named.noise}" if named.noise else ""
        rows.append(row(alias, f"`{named.solver}`{options}{noise}"))
    return rows


def refusals() -> list[str]:
    """A paragraph for every reason, with the names that have it."""
    alike: dict[str, list[str]] = {}
    for name, why in names.NOT_TABLES.items():
        alike.setdefault(why, []).append(name)
    return [
        f"{quoted(some)} {'is' if len(some) == 1 else 'are'} refused: {why}.\n"
        for why, some in alike.items()
    ]


HEAD = """# Samplers and grids

Made by `python docs/make_samplers.py`. \
Any sampler goes with any grid that the model's noise process can
visit, and with every prediction.

## {samplers} samplers

*Order* is what the solver declares; *measured* is the slope of its error over {steps} steps. \
Where it is
deterministic that is the error of the samples of a Gaussian mixture against an exact solution, \
where it is
stochastic that of the variance of Gaussian data, propagated exactly. \
*Calls* are network calls for N steps that
end at the clean level, options at their defaults. \
Every sampler also takes `s_churn`, `s_tmin`, `s_tmax` (EDM's
churn) and, where it adds noise, `s_noise`; \
those with `eta` also `sde` ([the steps that draw noise](rl.md)); \
those with one call a step also `skip` and `skip_order` (steps whose
prediction is forecast instead of computed). [Which one to choose](which-sampler.md);
[how they compare with diffusers and k-diffusion](parity.md).
"""
CONTROLLED_HEAD = """
**As many steps as asked.** A controlled sampler makes its rows as it goes, so it has no table and \
takes no number of steps:
it runs in `tm.sample`, `tm.begin` and `tm.start`, on the first and the last noisy level of its \
grid. What needs a table
(pipelines, `compare`, `Scheduler`) refuses it with the nearest.
"""
GRID_HEAD = """
**Long steps.** A multistep method extrapolates, which goes astray over a step much longer than \
the one before. Such is
the last step but one of `normal`, which ends at the model's cleanest level. \
Over it `unipc`, `res_multistep`, `deis`,
`dpm_multistep` and `sa_solver` fall in order; \
`dpmpp_2m` and `dpmpp_3m` are as published, and farther from the answer
than `euler`: in 8 steps .27 and .31 for .20, `unipc` .08; \
on a flow .78 and .91 for .25, `lms` .73, `unipc` .14 (an
exact mixture). In 4 steps `heun`, `pndm` and `dpm_singlestep` on `exponential`, `lam` and \
`kl_optimal` are 3 to 6 times
farther than `euler` with as many calls, and `lms` of order 4 on a flow does not gain from 4 to 8 \
steps.
`linear_quadratic` is for flows.

## {grids} grids

N steps visit exactly N + 1 strictly falling levels, for every N from 1 to 1000; \
the last is the clean level.
"""
NAME_HEAD = """
## Other names

Upper and lower case, blanks and underscores do not matter; a grid may follow (`DPM++ 2M Karras`,
`euler a/simple`), and so may ComfyUI's `_gpu`.
"""


def page() -> str:
    samplers = (sampler_row(n, s, measured_order(n, s)) for n, s in SOLVERS.items())
    grids = (grid_row(n, g) for n, g in GRIDS.items())
    return "\n".join([
        HEAD.format(samplers=len(SOLVERS), steps=", ".join(map(str, STEPS))),
        row("sampler", "order", "measured", "calls", "noise", "options", "reference"),
        row(*["---"] * 7),
        *samplers,
        CONTROLLED_HEAD,
        row("sampler", "order", "calls", "options", "reference"), row(*["---"] * 5),
        *(row(f"`{n}`", s.order, s.calls, quoted(s.options), s.reference)
          for n, s in CONTROLLED.items()),
        GRID_HEAD.format(grids=len(GRIDS)),
        row("grid", "levels", "space", "options", "reference"), row(*["---"] * 5), *grids,
        NAME_HEAD,
        row("typed", "is"), row(*["---"] * 2), *alias_rows(), "",
        *refusals(),
    ])  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    for path in READMES:
        path.write_text(listed(path.read_text("utf-8")), "utf-8")
    print(PAGE, *READMES)
