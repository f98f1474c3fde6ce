"""Claims of two widely read tutorials on diffusers, measured on a shipped model.

Every claim is a function from the comparison to a measurement in words and a verdict that follows
from the numbers. Settings are compared sample by sample, by the logarithm of the ratio: "better"
holds where its mean is beyond two standard errors of 0, "the same" where even two standard errors
above it the ratio is at most 1.25.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import Comparison, measure, write
from .plan import Plan
from .store import Outcome

PROMPTS = ("red apple", "cat face", "ghost", "robot")
SEEDS = 3
SAMPLERS = (
    "euler/leading", "euler/trailing", "dpmpp_2m/leading", "dpmpp_2m/trailing", "dpmpp_2m/karras",
    "dpmpp_2m/ays",
)  # fmt: skip
STEPS = (6, 10, 25)
SAME = 1.25
HOLDS, SOMETIMES, FAILS = "holds", "holds when", "does not hold"


def plan() -> Plan:
    """What has to run for all claims."""
    return Plan.of(
        list(PROMPTS),
        sampler=list(SAMPLERS),
        steps=list(STEPS),
        guidance_until=[None, 0.4],
        seeds=SEEDS,
    )


@dataclass
class Evidence:
    """A comparison, read setting by setting.

    A setting is a sampler, its steps and, where guidance ends early, the share of the steps.
    """

    comparison: Comparison

    def outcomes(self, sampler: str, steps: int, until: float | None = None) -> list[Outcome]:
        """The outcomes of a setting that are done, in the order of prompts and seeds."""
        wanted = {"sampler": sampler, "steps": steps, "guidance_until": until}
        cells = [c for c in self.comparison.plan if wanted.items() <= c.setting.items()]
        outcomes = [self.comparison.store.outcomes[cell.id] for cell in cells]
        return [outcome for outcome in outcomes if outcome.status == "done"]

    def values(
        self, name: str, sampler: str, steps: int, until: float | None = None
    ) -> list[float]:
        """A number of every sample: a measure, "seconds", "evaluations" or "detail"."""
        return [self._value(name, outcome) for outcome in self.outcomes(sampler, steps, until)]

    def _value(self, name: str, outcome: Outcome) -> float:
        if name == "detail":
            store = self.comparison.store
            fine = store.done(outcome.reference)
            assert fine is not None
            return detail(store.read_pixels(outcome)) / detail(store.read_pixels(fine))
        known = name in ("seconds", "evaluations")
        return float(getattr(outcome, name)) if known else outcome.measures[name]

    def summary(
        self, name: str, sampler: str, steps: int, until: float | None = None, digits: int = 3
    ) -> str:
        """Mean ± standard error of a number over the samples."""
        mean, error = measure.mean_and_error(self.values(name, sampler, steps, until))
        return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")

    def log_ratio(self, name: str, a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[float, float]:
        """Mean of log(a / b) over the samples of two settings, and two standard errors of it."""
        pairs = zip(self.values(name, *a), self.values(name, *b), strict=True)
        mean, error = measure.mean_and_error([measure.log_ratio(x, y) for x, y in pairs])
        return mean, measure.TIE * (error or 0.0)

    def less(self, name: str, a: tuple[Any, ...], b: tuple[Any, ...]) -> int:
        """-1 where setting a has less than b, 1 for more, 0 inside two standard errors."""
        mean, bound = self.log_ratio(name, a, b)
        return 0 if abs(mean) <= bound else int(math.copysign(1, mean))

    def no_more(self, name: str, a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
        """Whether a has at most a quarter more than b, two standard errors included."""
        mean, bound = self.log_ratio(name, a, b)
        return mean + bound <= math.log(SAME)


def detail(pixels: Tensor) -> float:
    """Mean length of the gradient of a picture (3, H, W): more where there are sharper edges."""
    dx, dy = pixels[..., 1:, 1:] - pixels[..., 1:, :-1], pixels[..., 1:, 1:] - pixels[..., :-1, 1:]
    return float((dx**2 + dy**2).sqrt().mean())


Claim = Callable[[Evidence], dict[str, Any]]


def _verdict(signs: dict[int, int]) -> tuple[str, str]:
    """The verdict of signs by steps, -1 where the claim holds, and the steps where it does."""
    good = [steps for steps, sign in signs.items() if sign < 0]
    if len(good) == len(signs):
        return HOLDS, ""
    return (SOMETIMES, ", ".join(map(str, good))) if good else (FAILS, "")


def _claim(
    en: str, es: str, measured_en: str, measured_es: str, verdict: str, when: str = ""
) -> dict[str, Any]:
    return {
        "claim": {"en": en, "es": es},
        "measured": {"en": measured_en, "es": measured_es},
        "verdict": verdict,
        "when": {
            "en": f"with {when} steps" if when else "",
            "es": f"con {when} pasos" if when else "",
        },
    }


def ays(e: Evidence) -> dict[str, Any]:
    """AYS with 10 steps against 25 steps of Euler and of DPM++ 2M Karras."""
    few, usual, strong = ("dpmpp_2m/ays", 10), ("euler/leading", 25), ("dpmpp_2m/karras", 25)
    name = "latent_rmse"
    numbers = (
        f"AYS 10 {{}} {e.summary(name, *few)}; Euler 25 {e.summary(name, *usual)}; DPM++ 2M Karras"
        f" 25 {e.summary(name, *strong)}, 10 {e.summary(name, 'dpmpp_2m/karras', 10)}."
    )
    against_usual, against_strong = e.no_more(name, few, usual), e.no_more(name, few, strong)
    verdict = HOLDS if against_usual and against_strong else SOMETIMES if against_usual else FAILS
    claim = _claim(
        "AYS: 10 steps, same quality",
        "AYS: 10 pasos, la misma calidad",
        f"Distance to the converged picture (latent RMSE): {numbers.format('steps')}",
        f"Distancia a la imagen convergida (RMSE latente): {numbers.format('pasos')}",
        verdict,
    )
    if verdict == SOMETIMES:
        claim["when"] = {"en": "against Euler", "es": "frente a Euler"}
    return claim


def _against(
    e: Evidence, name: str, a: str, b: str, steps: tuple[int, ...], more: bool = False
) -> tuple[str, str, str]:
    """Setting a against b at several steps: numbers in words, the verdict, and where it holds."""
    sign = -1 if more else 1
    signs = {n: sign * e.less(name, (a, n), (b, n)) for n in steps}
    words = "; ".join(f"{n}: {e.summary(name, a, n)} / {e.summary(name, b, n)}" for n in steps)
    return words, *_verdict(signs)


def trailing(e: Evidence) -> dict[str, Any]:
    """Trailing spacing against leading, with few steps."""
    words, *verdict = _against(e, "latent_rmse", "euler/trailing", "euler/leading", (6, 10))
    return _claim(
        "trailing: better with few steps",
        "trailing: mejor con pocos pasos",
        f"Latent RMSE to the converged picture, Euler, trailing / leading: {words}.",
        f"RMSE latente a la imagen convergida, Euler, trailing / leading: {words}.",
        *verdict,
    )


def karras(e: Evidence) -> dict[str, Any]:
    """Detail of Karras' sigmas against the default spacing."""
    words, *verdict = _against(e, "detail", "dpmpp_2m/karras", "dpmpp_2m/leading", STEPS, more=True)
    return _claim(
        "Karras sigmas: more detail",
        "Sigmas de Karras: más detalle",
        "Detail (gradient; 1 is the converged picture's), DPM++ 2M, Karras / the default spacing:"
        f" {words}.",
        "Detalle (gradiente; 1 es el de la imagen convergida), DPM++ 2M, Karras / el espaciado por"
        f" defecto: {words}.",
        *verdict,
    )


def soft(e: Evidence) -> dict[str, Any]:
    """Detail of DPM++ 2M Karras against Euler."""
    words, *verdict = _against(e, "detail", "dpmpp_2m/karras", "euler/leading", STEPS, more=True)
    return _claim(
        "Euler is soft, DPM++ Karras is sharp",
        "Euler es suave, DPM++ Karras es nítido",
        f"Detail (1 is the converged picture's), DPM++ 2M Karras / Euler: {words}.",
        f"Detalle (1 es el de la imagen convergida), DPM++ 2M Karras / Euler: {words}.",
        *verdict,
    )


def cutoff_picture(e: Evidence) -> dict[str, Any]:
    """Whether the picture stays the same when guidance ends: on top of the error of the sampler."""
    name, steps = "dpmpp_2m/karras", 25
    whole, cut = (e.summary("psnr", name, steps, until, 1) for until in (None, 0.4))
    same = e.no_more("latent_rmse", (name, steps, 0.4), (name, steps))
    return _claim(
        "Guidance off after 40 %: the same picture",
        "Guía apagada tras el 40 %: la misma imagen",
        f"PSNR to the converged picture with full guidance, {steps} steps: guided to the end"
        f" {whole} dB, until 40 % {cut} dB.",
        f"PSNR a la imagen convergida con guía completa, {steps} pasos: con guía hasta el final"
        f" {whole} dB, hasta el 40 % {cut} dB.",
        HOLDS if same else FAILS,
    )


def cutoff_time(e: Evidence) -> dict[str, Any]:
    """Whether the cutoff saves time."""
    name, steps = "dpmpp_2m/karras", 25
    whole, cut = (sum(e.values("evaluations", name, steps, until)) for until in (None, 0.4))
    seconds = sum(e.values("seconds", name, steps, 0.4)) / sum(e.values("seconds", name, steps))
    return _claim(
        "Guidance off after 40 %: faster",
        "Guía apagada tras el 40 %: más rápido",
        f"{cut:.0f} of {whole:.0f} network evaluations ({cut / whole:.2f}), {seconds:.2f} of the"
        " time.",
        f"{cut:.0f} de {whole:.0f} evaluaciones de la red ({cut / whole:.2f}), {seconds:.2f} del"
        " tiempo.",
        HOLDS if seconds < 0.9 else FAILS,
    )


CLAIMS: tuple[Claim, ...] = (ays, trailing, karras, soft, cutoff_picture, cutoff_time)


def measured(comparison: Comparison) -> list[dict[str, Any]]:
    """Every claim with its measurement and verdict, in English and Spanish."""
    from ..pipelines.helm import Helm

    evidence = Evidence(comparison)
    helm = Helm(comparison.plan.cells[0].recipe.model)
    helm.pipe.set_progress_bar_config(disable=True)
    return [*(claim(evidence) for claim in CLAIMS), cutoff_memory(helm), middle(helm)]


def judged(comparison: Comparison, claims: list[dict[str, Any]] | None = None) -> Comparison:
    """The comparison with the claims on its page; None measures `claims`."""
    claims = measured(comparison) if claims is None else claims
    return write(comparison.plan, comparison.store, claims=claims)


def cutoff_memory(helm: Any) -> dict[str, Any]:
    """Whether the cutoff makes the largest batch of a network call, and its memory, smaller."""
    from ..core.guidance import cfg

    sizes: dict[str, int] = {}
    network = getattr(helm.pipe, "unet", None) or helm.pipe.transformer
    for name, guidance in (("full", cfg(4.0)), ("cut", cfg(4.0, until=0.4))):
        seen: list[int] = []
        hook = network.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(len((*args, *kwargs.values())[0])),
            with_kwargs=True,
        )
        helm([PROMPTS[0]], steps=5, guidance=guidance, seeds=[0])
        hook.remove()
        sizes[name] = max(seen)
    cut, full = sizes["cut"], sizes["full"]
    return _claim(
        "Guidance off after 40 %: less memory",
        "Guía apagada tras el 40 %: menos memoria",
        f"The largest batch of a network call is {cut} with the cutoff and {full} without: the peak"
        " is in the first, guided steps.",
        f"El mayor lote de una llamada a la red es {cut} con el corte y {full} sin él: el pico está"
        " en los primeros pasos, con guía.",
        FAILS if cut == full else HOLDS,
    )


def middle(helm: Any) -> dict[str, Any]:
    """In which third of the steps the denoised prediction changes most."""
    shares = {}
    for name in ("euler/leading", "dpmpp_2m/karras"):
        denoised: list[Tensor] = []
        helm(
            [*PROMPTS],
            sampler=name,
            steps=24,
            guidance=4.0,
            seeds=range(len(PROMPTS)),
            hooks=[lambda run, seen=denoised: seen.append(run.denoised.clone())],
        )
        pairs = itertools.pairwise(denoised)
        change = torch.stack([(b - a).square().mean().sqrt() for a, b in pairs])
        shares[name] = [float(p.sum() / change.sum()) for p in torch.tensor_split(change, 3)]
    words = "; ".join(
        f"{name} {', '.join(f'{100 * s:.0f} %' for s in thirds)}" for name, thirds in shares.items()
    )
    most = {name: thirds.index(max(thirds)) for name, thirds in shares.items()}
    where = ", ".join(name for name, third in most.items() if third == 1)
    verdict = HOLDS if set(most.values()) == {1} else SOMETIMES if where else FAILS
    claim = _claim(
        "Most of the reconstruction happens in the middle",
        "La mayor reconstrucción ocurre en la mitad",
        "Change of the denoised prediction in the first, second and last third of 24 steps:"
        f" {words}.",
        "Cambio de la predicción limpia en el primer, segundo y último tercio de 24 pasos:"
        f" {words}.",
        verdict,
    )
    if verdict == SOMETIMES:
        claim["when"] = {"en": f"with {where}", "es": f"con {where}"}
    return claim
