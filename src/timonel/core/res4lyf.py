"""RES4LYF's names of samplers: what each is here, and why the rest is refused.

RES4LYF (a node pack of ComfyUI) names a tableau and its stages, "ralston_3s", behind a folder,
"linear/ralston_3s". Its plain names add noise (eta = 0.5); those with "_ode" do not. Here both are
the deterministic method; any of them takes `s_churn`. Its multistep names begin with singlestep
steps, and fall back to them over steps longer than 1 in lam.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: before the name of a tableau, as `names.key` writes them
FOLDERS = ("multistep", "exponential", "hybrid", "linear", "diag implicit", "fully implicit")


def _tableaus(solver: str, names: Mapping[str, str]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    return {typed: (solver, {"tableau": tableau}) for typed, tableau in names.items()}


#: normalised names, and solver and options that they stand for
RESOLVED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "res 2m": ("res_multistep", {}),
    "res 3m": ("res_multistep", {"order": 3}),
    # exponential Adams-Bashforth; theirs has the weights of even spacing
    "abnorsett 2m": ("res_multistep", {}),
    "abnorsett 3m": ("res_multistep", {"order": 3}),
    "abnorsett 4m": ("res_multistep", {"order": 4}),
    # DEIS in rho is the polynomial in sigma, which is `lms`
    "deis 2m": ("lms", {"order": 2}),
    "deis 3m": ("lms", {"order": 3}),
    "deis 4m": ("lms", {}),
    "dpmpp sde 2s": ("dpmpp_2s", {"r": 1.0}),
    **_tableaus("exponential_rk", {
        "res 2s stable": "heun", "res 2s rkmk2e": "heun", "etdrk2 2s": "heun",
        "res 3s alt": "dpm_3", "res 3s non-monotonic": "res_3s_down",
        "res 3s cox matthews": "etd3rk", "res 3s lie": "etd2cf3",
        "etdrk3 a 3s": "etdrk3", "etdrk3 b 3s": "etdrk3_b",
        "res 4s krogstad": "krogstad", "res 4s krogstad alt": "krogstad",
        "res 4s strehmel weiner": "strehmel_weiner",
        "res 4s strehmel weiner alt": "strehmel_weiner",
        "res 4s cox matthews": "etdrk4", "etdrk4 4s": "etdrk4", "etdrk4 4s alt": "etdrk4",
        "res 4s cfree4": "cfree4", "res 4s munthe-kaas": "rkmk4t",
        "res 5s": "res_5s", "res 5s hochbruck-ostermann": "res_5s",
        "res 6s": "res_6s", "res 10s": "res_10s",
    }),
    **_tableaus("runge_kutta", {
        "midpoint 2s": "midpoint", "heun 2s": "heun", "ralston 2s": "ralston",
        "heun 3s": "heun3", "kutta 3s": "kutta3", "ssprk3 3s": "ssprk3",
        "ralston 3s": "bogacki_shampine", "bogacki-shampine 4s": "bogacki_shampine",
        "houwen-wray 3s": "houwen_wray3", "ssprk4 4s": "ssprk4", "rk4 4s": "rk4",
        "rk38 4s": "rk38", "ralston 4s": "ralston4", "dormand-prince 6s": "dormand_prince",
        "bogacki-shampine 7s": "bogacki_shampine5", "tsi 7s": "tsitouras5",
        "rk6 7s": "butcher6",
        # without stages, as they are written in books
        "midpoint": "midpoint", "ralston": "ralston", "bogacki-shampine": "bogacki_shampine",
        "dormand-prince": "dormand_prince",
    }),
    # without "_s" and stages
    "etdrk2": ("exponential_rk", {"tableau": "heun"}),
    "etdrk3": ("exponential_rk", {"tableau": "etdrk3"}),
    "etdrk4": ("exponential_rk", {"tableau": "etdrk4"}),
}  # fmt: skip

_RK = "options={{'tableau': {!r}}}"
_IMPLICIT = (
    "it is implicit: a stage is a prediction at a sample that this prediction has yet to make, so"
    " it is no table; use 'runge_kutta' or 'exponential_rk', whose tableau= has orders up to 6"
)
_LAWSON = (
    "Lawson's methods do not meet a constant denoised sample, and end farther from the answer"
    " (lawson4 on normal in 8 steps: .10 for .012); use 'exponential_rk'"
)
_HYBRID = (
    "it mixes stages with older predictions by weights for even spacing, which few grids have; use"
    " 'unipc'"
)
_ORDER_2 = "RES4LYF's weights leave order 2, less than its name says; use 'exponential_rk'"


def _like(reason: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, reason)


#: normalised names that are refused, and why
REFUSED: dict[str, str] = {
    **_like(_ORDER_2, "res 3s sunstar", "res 3s strehmel weiner", "res 4s friedli",
            "res 4s minchev"),
    **_like("its weights in RES4LYF are of order 4.4 as measured, not 5; use 'exponential_rk' with "
            + _RK.format("res_10s"), "res 8s", "res 8s alt"),
    **_like("it makes 15 or 16 network calls a step; use 'exponential_rk' with "
            + _RK.format("res_10s"), "res 15s", "res 16s"),
    **_like(_LAWSON, "lawson2a 2s", "lawson2b 2s", "lawson4 4s", "lawson41-gen 4s",
            "lawson41-gen-mod 4s", "lawson42-gen-mod 1h4s", "lawson43-gen-mod 2h4s",
            "lawson44-gen-mod 3h4s", "lawson45-gen-mod 4h4s", "lawson", "lawson4"),
    **_like(_HYBRID, "pec423 2h2s", "pec433 2h3s", "abnorsett2 1h2s", "abnorsett3 2h2s",
            "abnorsett4 3h2s"),
    "rk5 7s": "two of RES4LYF's signs differ from Dormand and Prince's; use 'dormand-prince'",
    "dormand-prince 13s": "it makes 13 network calls a step; use 'dormand-prince' or 'rk6_7s'",
    **_like(_IMPLICIT,
            "irk exp diag 2s", "kraaijevanger spijker 2s", "qin zhang 2s", "pareschi russo 2s",
            "pareschi russo alt 2s", "crouzeix 2s", "crouzeix 3s", "crouzeix 3s alt",
            "gauss-legendre 2s", "gauss-legendre 3s", "gauss-legendre 4s",
            "gauss-legendre 4s alternating a", "gauss-legendre 4s ascending a",
            "gauss-legendre 4s alt", "gauss-legendre 5s", "gauss-legendre 5s ascending",
            "gauss-legendre", "radau ia 2s", "radau ia 3s", "radau iia 2s", "radau iia 3s",
            "radau iia 3s alt", "radau iia 5s", "radau iia 7s", "radau iia 9s", "radau iia 11s",
            "lobatto iiia 2s", "lobatto iiia 3s", "lobatto iiia 4s", "lobatto iiib 2s",
            "lobatto iiib 3s", "lobatto iiib 4s", "lobatto iiic 2s", "lobatto iiic 3s",
            "lobatto iiic 4s", "lobatto iiic star 2s", "lobatto iiic star 3s", "lobatto iiid 2s",
            "lobatto iiid 3s"),
}  # fmt: skip
