"""The claims of two widely read tutorials on diffusers' schedulers and callbacks, measured on a
shipped model.

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
        list(PROMPTS), sampler=list(SAMPLERS), steps=list(STEPS), guidance_until=[None, 0.4],
        seeds=SEEDS
    )  # fmt: skip


@dataclass
class Evidence:
    """A comparison, read setting by setting."""

    found: Comparison

    def __post_init__(self) -> None:
        self.cells = {
            (
                c.at["sampler"],
                c.at["steps"],
                c.at["guidance_until"],
                c.at["prompt"],
                c.at["seed"],
            ): c.id
            for c in self.found.plan
        }

    def outcomes(self, sampler: str, steps: int, until: float | None = None) -> list[Outcome]:
        """The outcomes of a setting, in the order of prompts and seeds."""
        named = [
            self.found.store.outcomes[i]
            for key, i in self.cells.items()
            if key[:3] == (sampler, steps, until)
        ]
        return [outcome for outcome in named if outcome.status == "done"]

    def values(
        self, name: str, sampler: str, steps: int, until: float | None = None
    ) -> list[float]:
        """A number of every sample: a measure, "seconds", "evaluations" or "detail"."""
        return [self._value(name, outcome) for outcome in self.outcomes(sampler, steps, until)]

    def _value(self, name: str, outcome: Outcome) -> float:
        if name == "detail":
            fine = self.found.store.done(outcome.reference)
            assert fine is not None
            store = self.found.store
            return detail(store.read_pixels(outcome)) / detail(store.read_pixels(fine))
        return (
            float(getattr(outcome, name))
            if name in ("seconds", "evaluations")
            else outcome.measures[name]
        )

    def told(
        self, name: str, sampler: str, steps: int, until: float | None = None, digits: int = 3
    ) -> str:
        """Mean and standard error in words."""
        mean, error = measure.mean_and_error(self.values(name, sampler, steps, until))
        return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")

    def apart(self, name: str, a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[float, float]:
        """Mean of log(a / b) over the samples, and two standard errors of it."""
        pairs = zip(self.values(name, *a), self.values(name, *b), strict=True)
        mean, error = measure.mean_and_error([measure.log_ratio(x, y) for x, y in pairs])
        return mean, measure.TIE * (error or 0.0)

    def less(self, name: str, a: tuple[Any, ...], b: tuple[Any, ...]) -> int:
        """-1 where setting a has less of it than b, 1 where it has more, 0 inside two standard
        errors.
        """
        mean, bound = self.apart(name, a, b)
        return 0 if abs(mean) <= bound else int(math.copysign(1, mean))

    def no_more(self, name: str, a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
        """Whether a has as little of it as b, or less: at most a quarter more, two standard errors
        included.
        """
        mean, bound = self.apart(name, a, b)
        return mean + bound <= math.log(SAME)


def detail(pixels: Tensor) -> float:
    """Mean length of a picture's gradient (3, H, W): more where edges are sharper or there are more
    of them.
    """
    dx, dy = pixels[..., 1:, 1:] - pixels[..., 1:, :-1], pixels[..., 1:, 1:] - pixels[..., :-1, 1:]
    return float((dx**2 + dy**2).sqrt().mean())


Claim = Callable[[Evidence], dict[str, Any]]


def _verdict(signs: dict[int, int]) -> tuple[str, str]:
    """From "better at these steps" (-1), worse (1) or no difference (0): the verdict, and the steps
    where it holds.
    """
    good = [steps for steps, sign in signs.items() if sign < 0]
    if len(good) == len(signs):
        return HOLDS, ""
    return (SOMETIMES, ", ".join(map(str, good))) if good else (FAILS, "")


def _made(
    en: str, es: str, measured_en: str, measured_es: str, verdict: str, when: str = ""
) -> dict[str, Any]:
    steps = (
        {"en": f"with {when} steps", "es": f"con {when} pasos"} if when else {"en": "", "es": ""}
    )
    return {
        "claim": {"en": en, "es": es}, "measured": {"en": measured_en, "es": measured_es},
        "verdict": verdict,
        "when": steps,
    }  # fmt: skip


def ays(e: Evidence) -> dict[str, Any]:
    """AYS with 10 steps against 25 steps of what pipelines do by default, and of DPM++ 2M Karras."""
    mine = e.told("latent_rmse", "dpmpp_2m/ays", 10)
    usual, strong = (
        e.told("latent_rmse", name, 25) for name in ("euler/leading", "dpmpp_2m/karras")
    )
    beside = e.told("latent_rmse", "dpmpp_2m/karras", 10)
    settings = ("dpmpp_2m/ays", 10), ("euler/leading", 25), ("dpmpp_2m/karras", 25)
    against_usual = e.no_more("latent_rmse", settings[0], settings[1])
    against_strong = e.no_more("latent_rmse", settings[0], settings[2])
    verdict = HOLDS if against_usual and against_strong else SOMETIMES if against_usual else FAILS
    made = _made(
        "AYS: 10 steps, same quality", "AYS: 10 pasos, la misma calidad",
        f"Distance to the converged picture (latent RMSE): AYS 10 steps {mine}; Euler 25 {usual}; DPM++ 2M Karras 25 "
        f"{strong}, 10 {beside}.",
        f"Distancia a la imagen convergida (RMSE latente): AYS 10 pasos {mine}; Euler 25 {usual}; DPM++ 2M Karras 25 "
        f"{strong}, 10 {beside}.", verdict,
    )  # fmt: skip
    if verdict == SOMETIMES:
        made["when"] = {"en": "against Euler", "es": "frente a Euler"}
    return made


def _against(
    e: Evidence, name: str, a: str, b: str, steps: tuple[int, ...], more: bool = False
) -> Any:
    """Setting a against b over several numbers of steps: the numbers in words, the verdict and
    where it holds.
    """
    sign = -1 if more else 1
    signs = {n: sign * e.less(name, (a, n), (b, n)) for n in steps}
    words = "; ".join(f"{n}: {e.told(name, a, n)} / {e.told(name, b, n)}" for n in steps)
    return words, *_verdict(signs)


def trailing(e: Evidence) -> dict[str, Any]:
    words, verdict, when = _against(e, "latent_rmse", "euler/trailing", "euler/leading", (6, 10))
    return _made(
        "trailing: better with few steps", "trailing: mejor con pocos pasos",
        f"Latent RMSE to the converged picture, Euler, trailing / leading: {words}.",
        f"RMSE latente a la imagen convergida, Euler, trailing / leading: {words}.", verdict, when,
    )  # fmt: skip


def karras(e: Evidence) -> dict[str, Any]:
    words, verdict, when = _against(
        e, "detail", "dpmpp_2m/karras", "dpmpp_2m/leading", STEPS, more=True
    )
    return _made(
        "Karras sigmas: more detail", "Sigmas de Karras: más detalle",
        f"Detail (gradient; 1 is the converged picture's), DPM++ 2M, Karras / the default spacing: {words}.",
        f"Detalle (gradiente; 1 es el de la imagen convergida), DPM++ 2M, Karras / el espaciado por defecto: {words}.",
        verdict, when,
    )  # fmt: skip


def soft(e: Evidence) -> dict[str, Any]:
    words, verdict, when = _against(
        e, "detail", "dpmpp_2m/karras", "euler/leading", STEPS, more=True
    )
    return _made(
        "Euler is soft, DPM++ Karras is sharp", "Euler es suave, DPM++ Karras es nítido",
        f"Detail (1 is the converged picture's), DPM++ 2M Karras / Euler: {words}.",
        f"Detalle (1 es el de la imagen convergida), DPM++ 2M Karras / Euler: {words}.", verdict,
        when,
    )  # fmt: skip


def cutoff_picture(e: Evidence) -> dict[str, Any]:
    """Whether the picture stays the same when guidance ends: on top of the sampler's own error."""
    name, steps = "dpmpp_2m/karras", 25
    whole, cut = e.told("psnr", name, steps, None, 1), e.told("psnr", name, steps, 0.4, 1)
    same = e.no_more("latent_rmse", (name, steps, 0.4), (name, steps))
    return _made(
        "Guidance off after 40 %: the same picture", "Guía apagada tras el 40 %: la misma imagen",
        f"PSNR to the converged picture with full guidance, {steps} steps: guided to the end {whole} dB, until 40 % "
        f"{cut} dB.",
        f"PSNR a la imagen convergida con guía completa, {steps} pasos: con guía hasta el final {whole} dB, hasta el "
        f"40 % {cut} dB.", HOLDS if same else FAILS,
    )  # fmt: skip


def cutoff_time(e: Evidence) -> dict[str, Any]:
    name, steps = "dpmpp_2m/karras", 25
    whole, cut = (sum(e.values("evaluations", name, steps, until)) for until in (None, 0.4))
    seconds = sum(e.values("seconds", name, steps, 0.4)) / sum(e.values("seconds", name, steps))
    return _made(
        "Guidance off after 40 %: faster", "Guía apagada tras el 40 %: más rápido",
        f"{cut:.0f} of {whole:.0f} network evaluations ({cut / whole:.2f}), {seconds:.2f} of the time.",
        f"{cut:.0f} de {whole:.0f} evaluaciones de la red ({cut / whole:.2f}), {seconds:.2f} del tiempo.",
        HOLDS if seconds < 0.9 else FAILS,
    )  # fmt: skip


CLAIMS: tuple[Claim, ...] = (ays, trailing, karras, soft, cutoff_picture, cutoff_time)


def measured(found: Comparison) -> list[dict[str, Any]]:
    """Every claim with its measurement and verdict, in English and Spanish."""
    from ..pipelines.helm import Helm

    evidence = Evidence(found)
    helm = Helm(found.plan.cells[0].recipe.model)
    helm.pipe.set_progress_bar_config(disable=True)
    return [*(claim(evidence) for claim in CLAIMS), cutoff_memory(helm), middle(helm)]


def judged(found: Comparison, claims: list[dict[str, Any]] | None = None) -> Comparison:
    """The comparison with the claims on its page."""
    return write(found.plan, found.store, claims=measured(found) if claims is None else claims)


def cutoff_memory(helm: Any) -> dict[str, Any]:
    """The largest batch that the network sees in a call, which is what activations need memory for."""
    from ..core.guidance import cfg

    sizes: dict[str, int] = {}
    network = getattr(helm.pipe, "unet", None) or helm.pipe.transformer
    for name, given in (("full", cfg(4.0)), ("cut", cfg(4.0, until=0.4))):
        seen: list[int] = []
        hook = network.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(len((*args, *kwargs.values())[0])),
            with_kwargs=True,
        )
        helm([PROMPTS[0]], steps=5, guidance=given, seeds=[0])
        hook.remove()
        sizes[name] = max(seen)
    same = sizes["cut"] == sizes["full"]
    return _made(
        "Guidance off after 40 %: less memory", "Guía apagada tras el 40 %: menos memoria",
        f"The largest batch of a network call is {sizes['cut']} with the cutoff and {sizes['full']} without: the peak "
        "is in the first, guided steps.",
        f"El mayor lote de una llamada a la red es {sizes['cut']} con el corte y {sizes['full']} sin él: el pico está "
        "en los primeros pasos, con guía.", FAILS if same else HOLDS,
    )  # fmt: skip


def middle(helm: Any) -> dict[str, Any]:
    """Where the denoised prediction changes most: by third of the steps, of the default spacing and
    of Karras'.
    """
    shares = {}
    for name in ("euler/leading", "dpmpp_2m/karras"):
        told: list[Tensor] = []
        helm([*PROMPTS], sampler=name, steps=24, guidance=4.0, seeds=range(len(PROMPTS)),
             hooks=[lambda run, told=told: told.append(run.denoised.clone())])  # fmt: skip
        moved = torch.stack([(b - a).square().mean().sqrt() for a, b in itertools.pairwise(told)])
        thirds = [float(part.sum() / moved.sum()) for part in torch.tensor_split(moved, 3)]
        shares[name] = thirds
    words = "; ".join(
        f"{name} {', '.join(f'{100 * s:.0f} %' for s in thirds)}" for name, thirds in shares.items()
    )
    most = [thirds.index(max(thirds)) for thirds in shares.values()]
    verdict = HOLDS if most == [1, 1] else FAILS if 1 not in most else SOMETIMES
    made = _made(
        "Most of the reconstruction happens in the middle",
        "La mayor reconstrucción ocurre en la mitad",
        f"Change of the denoised prediction in the first, second and last third of 24 steps: {words}.",
        f"Cambio de la predicción limpia en el primer, segundo y último tercio de 24 pasos: {words}.", verdict,
    )  # fmt: skip
    if verdict == SOMETIMES:
        which = ", ".join(name for name, at in zip(shares, most, strict=True) if at == 1)
        made["when"] = {"en": f"with {which}", "es": f"con {which}"}
    return made
