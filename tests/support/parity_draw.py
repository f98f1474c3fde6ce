"""How configurations of every diffusers scheduler are drawn, and timonel's names for them."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from support.parity import Case
from timonel.core.prediction import threshold

Config = dict[str, Any]
PREDICTION = {
    "epsilon": "epsilon",
    "v": "v_prediction",
    "sample": "sample",
    "flow": "flow_prediction",
}
CLIP = 1.5
DIVISORS = (2, 4, 5, 8, 10, 20, 25, 40)  # of 1000


# -- parts of configurations -----------------------------------------------------------------------
def betas(rng: random.Random) -> Config:
    return {
        "beta_schedule": rng.choice(["linear", "scaled_linear", "squaredcos_cap_v2"]),
        "beta_start": rng.choice([0.0001, 0.00085]),
        "beta_end": rng.choice([0.012, 0.02]),
    }


def clip(clean: torch.Tensor) -> torch.Tensor:
    return clean.clamp(-CLIP, CLIP)


def dynamic(clean: torch.Tensor) -> torch.Tensor:
    return threshold(clean, 0.9, CLIP)


def spacing(
    rng: random.Random, names: tuple[str, ...] = ("linspace", "leading", "trailing")
) -> Config:
    return {"timestep_spacing": rng.choice(names), "steps_offset": rng.choice([0, 1])}


def counted(rng: random.Random) -> tuple[int, Config]:
    """Steps and spacing of schedulers that step 1000 // N back, whatever their own list says."""
    config = spacing(rng, ("leading", "trailing"))
    stands = (
        config["timestep_spacing"] == "leading" and config["steps_offset"] == 0
    )  # at time 0, unless it goes to 1
    config["set_alpha_to_one"] = stands or rng.random() < 0.6
    return rng.randint(2, 40) if config["timestep_spacing"] == "leading" else rng.choice(
        DIVISORS
    ), config


def shape(rng: random.Random, *more: str) -> Config:
    """Which grid over sigma is taken, if any."""
    flag = rng.choice(
        ["", "", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", *more]
    )
    return {flag: True} if flag else {}


def case(
    rng: random.Random, peer: str, config: Config, solver: str, kinds: str = "epsilon", **more: Any
) -> Case:
    """A case whose prediction, steps and dtype are drawn where they are not given."""
    kind = rng.choice(kinds.split())
    more = {"steps": rng.randint(2, 40), "double": rng.random() < 0.7, "kind": kind} | more
    if not more["double"] and config.get("beta_schedule") == "squaredcos_cap_v2":
        config = config | {
            "beta_schedule": "linear"
        }  # sigma reaches 20000 there, which float32 cannot hold
    return Case(
        peer=peer, config=config | {"prediction_type": PREDICTION[kind]}, solver=solver, **more
    )


# -- the Euler family ------------------------------------------------------------------------------
def euler(rng: random.Random) -> Case:
    config = betas(rng) | spacing(rng) | shape(rng)
    if rng.random() < 0.2:  # a run that ends at sigma_min
        config = betas(rng) | {"timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"}
    return case(rng, "EulerDiscreteScheduler", config, "euler", "epsilon v sample")


def euler_zero_snr(rng: random.Random) -> Case:
    config = betas(rng) | spacing(rng) | {"rescale_betas_zero_snr": True}
    return case(rng, "EulerDiscreteScheduler", config, "euler", "v")


def svd(rng: random.Random) -> Case:
    """Stable Video Diffusion's: continuous times, a sigma range of its own."""
    config = {
        "timestep_type": "continuous",
        "sigma_min": 0.002,
        "sigma_max": 700.0,
        "use_karras_sigmas": True,
    }
    return case(rng, "EulerDiscreteScheduler", betas(rng) | config, "euler", "v")


def two_calls(peer: str, solver: str, kinds: str, low: int = 2) -> Callable[[random.Random], Case]:
    """Schedulers with an inner call, whose time they round: a blind network; and few training
    times, for speed.
    """

    def draw(rng: random.Random) -> Case:
        config = betas(rng) | spacing(rng) | shape(rng) | {"num_train_timesteps": 250}
        return case(rng, peer, config, solver, kinds, blind=True, steps=rng.randint(low, 30))

    return draw


def euler_ancestral(rng: random.Random) -> Case:
    config = betas(rng) | spacing(rng)
    return case(rng, "EulerAncestralDiscreteScheduler", config, "euler_ancestral", "epsilon v")


def lms(rng: random.Random) -> Case:
    order = rng.randint(1, 4)
    config = betas(rng) | spacing(rng) | shape(rng)
    more: Config = {
        "steps": rng.randint(2, 16),
        "options": {"order": order, "euler_at_final": False},
        "step": {"order": order},
    }
    return case(rng, "LMSDiscreteScheduler", config, "lms", "epsilon v sample", **more)


# -- the DDPM and DDIM family ----------------------------------------------------------------------
def ddim(peer: str) -> Callable[[random.Random], Case]:
    def draw(rng: random.Random) -> Case:
        zero_snr, (steps, config) = rng.random() < 0.3, counted(rng)
        config |= betas(rng) | {"clip_sample": False, "rescale_betas_zero_snr": zero_snr}
        eta = rng.choice([0.0, 0.3, 1.0])
        more: Config = {"steps": steps, "options": {"eta": eta}, "step": {"eta": eta}}
        if rng.random() < 0.3:
            config |= {"clip_sample": True, "clip_sample_range": CLIP}
            more |= {"shape": clip, "step": more["step"] | {"use_clipped_model_output": True}}
        return case(
            rng, peer, config, "ddim", "v" if zero_snr else "epsilon v sample", space="abar", **more
        )

    return draw


def ddpm(peer: str) -> Callable[[random.Random], Case]:
    def draw(rng: random.Random) -> Case:
        config = betas(rng) | spacing(rng) | {"clip_sample": False}
        config["variance_type"] = rng.choice(["fixed_small", "fixed_small_log"])
        clipped: Config = (
            {"clip_sample": True, "clip_sample_range": CLIP} if rng.random() < 0.3 else {}
        )
        more: Config = {"shape": clip} if clipped else {}
        return case(rng, peer, config | clipped, "ddpm", "epsilon v sample", space="abar", **more)

    return draw


def unclip(rng: random.Random) -> Case:
    more: Config = {
        "space": "abar",
        "call": "previous",
        "double": True,
    }  # its schedule is the cosine
    return case(rng, "UnCLIPScheduler", {"clip_sample": False}, "ddpm", "epsilon sample", **more)


def wuerstchen(rng: random.Random) -> Case:
    config = {"scaler": rng.choice([0.7, 1.0, 1.2]), "s": rng.choice([0.008, 0.02])}
    more: Config = {
        "steps": rng.randint(2, 20)
    }  # with more steps it repeats its noisiest level, 0.0001 of signal
    drawn = case(
        rng, "DDPMWuerstchenScheduler", {}, "ddpm", space="wuerstchen", call="batched", **more
    )
    return replace(drawn, config=config)


def cogvideox_ddim(rng: random.Random) -> Case:
    steps, config = counted(rng)
    config |= betas(rng) | cogvideox(rng)
    kinds = "v" if config["rescale_betas_zero_snr"] else "epsilon v sample"
    return case(rng, "CogVideoXDDIMScheduler", config, "euler", kinds, space="abar", steps=steps)


def cogvideox(rng: random.Random) -> Config:
    return {"snr_shift_scale": rng.choice([1.0, 3.0]), "rescale_betas_zero_snr": rng.random() < 0.5}


def cogvideox_dpm(rng: random.Random) -> Case:
    steps, config = counted(rng)
    config |= betas(rng) | cogvideox(rng) | {"set_alpha_to_one": True}
    kinds = "v" if config["rescale_betas_zero_snr"] else "epsilon v sample"
    more: Config = {"space": "abar", "steps": steps, "call": "cogvideo"}
    return case(rng, "CogVideoXDPMScheduler", config, "dpmpp_2m_sde", kinds, **more)


# -- DPM-Solver, UniPC, DEIS, SA-Solver ------------------------------------------------------------
DPMPP = {
    (1, "ode"): "euler",
    (1, "sde"): "ddpm",
    (2, "ode"): "dpmpp_2m",
    (2, "sde"): "dpmpp_2m_sde",
    (3, "ode"): "dpmpp_3m",
}


def dpm_options(order: int, variant: str, steps: int) -> Config:
    """timonel's options; curvature 1/2 is what diffusers computes at order 3, which falls below 15
    steps only.
    """
    both = {"variant": variant} if order > 1 and (order == 3 or variant == "heun") else {}
    return both | ({"curvature": 0.5, "final_order": 2 if steps < 15 else 3} if order == 3 else {})


def dpm_multistep(rng: random.Random) -> Case:
    form = rng.choice(["ode", "ode", "sde"])
    order, variant = (
        rng.choice([1, 2, 2, 3] if form == "ode" else [1, 2]),
        rng.choice(["midpoint", "heun"]),
    )
    algorithm = {"ode": "dpmsolver++", "sde": "sde-dpmsolver++"}[form]
    config = betas(rng) | spacing(rng) | shape(rng, "use_lu_lambdas")
    more: Config = {"steps": rng.randint(2, 40)}
    if order == 1 and form == "ode" and rng.random() < 0.3:
        config = (
            betas(rng)
            | spacing(rng)
            | {"final_sigmas_type": "sigma_min", "algorithm_type": "dpmsolver"}
        )
        return case(
            rng,
            "DPMSolverMultistepScheduler",
            config | {"solver_order": 1},
            "euler",
            "epsilon v sample",
            space="dpm",
        )
    kinds = "epsilon v sample"
    if rng.random() < 0.25:  # a run that ends at sigma_min, at full order
        config = (
            betas(rng)
            | spacing(rng)
            | {"final_sigmas_type": "sigma_min", "lower_order_final": False}
        )
        more["steps"] = rng.randint(2, 40)
    elif rng.random() < 0.3:
        config = {"use_flow_sigmas": True, "flow_shift": rng.choice([1.0, 3.0, 7.0])}
        kinds = "flow"
    elif rng.random() < 0.2:
        config, kinds = betas(rng) | spacing(rng) | {"rescale_betas_zero_snr": True}, "v"
    config |= {"algorithm_type": algorithm, "solver_order": order, "solver_type": variant}
    more |= {
        "options": dpm_options(order, variant, more["steps"]),
        "space": "flow" if kinds == "flow" else "dpm",
    }
    if rng.random() < 0.15:
        config |= {
            "thresholding": True,
            "dynamic_thresholding_ratio": 0.9,
            "sample_max_value": CLIP,
        }
        more |= {"shape": dynamic, "double": False}  # timonel takes the quantile in float32
    return case(rng, "DPMSolverMultistepScheduler", config, DPMPP[order, form], kinds, **more)


def dpm_singlestep(rng: random.Random) -> Case:
    """Steps of one or two calls; on levels even in lam the inner calls are timonel's."""
    form = rng.choice(["dpmsolver++", "dpmsolver++", "dpmsolver", "sde-dpmsolver++"])
    order, variant = (
        rng.choice([1, 2]) if form == "dpmsolver++" else 2,
        rng.choice(["midpoint", "heun"]),
    )
    config = betas(rng) | {
        "use_exponential_sigmas": True,
        "lower_order_final": True,
        "solver_type": variant,
    }
    solver, options, idle = (
        {1: "euler", 2: {"midpoint": "dpmpp_2s", "heun": "res_2s"}[variant]}[order],
        {},
        0,
    )
    if form == "dpmsolver":  # only with the midpoint, and to sigma_min
        config |= {"final_sigmas_type": "sigma_min", "solver_type": "midpoint"}
        solver, options, idle = "dpm_solver", {"order": 2}, 1
    elif form == "sde-dpmsolver++":  # at order 2 it draws two noises for one interval
        solver, order = "ddpm", 1
    config |= {"algorithm_type": form, "solver_order": order}
    more: Config = {
        "steps": 2 * rng.randint(1, 12) + 1,
        "blind": True,
        "space": "pairs",
        "idle": idle,
        "options": options,
    }
    if form == "dpmsolver":
        more["double"] = True  # e^h of a long step is past float32
    return case(rng, "DPMSolverSinglestepScheduler", config, solver, "epsilon v sample", **more)


def unipc(rng: random.Random) -> Case:
    order, variant, kinds = rng.randint(1, 3), rng.choice(["bh1", "bh2"]), "epsilon v sample"
    config = betas(rng) | spacing(rng) | shape(rng)
    end = variant == "bh2" or order == 0
    if rng.random() < 0.25:
        config = (
            betas(rng)
            | spacing(rng)
            | {"final_sigmas_type": "sigma_min", "lower_order_final": False}
        )
        end = True
    elif rng.random() < 0.3:
        config, kinds = {"use_flow_sigmas": True, "flow_shift": rng.choice([1.0, 3.0])}, "flow"
    config |= {"solver_order": order, "solver_type": variant}
    more: Config = {
        "options": {"order": order, "variant": variant},
        "space": "flow" if kinds == "flow" else "dpm",
    }
    made = case(rng, "UniPCMultistepScheduler", config, "unipc", kinds, end=end, **more)
    schedule = str(order) * made.steps  # as a number it is 1 on a long last step
    return dataclasses.replace(made, options={"order": schedule, "variant": variant})


def deis(rng: random.Random) -> Case:
    order = rng.randint(1, 3)
    config = betas(rng) | spacing(rng) | {"solver_order": order, "lower_order_final": False}
    more: Config = {"options": {"order": order, "variant": "logrho"}, "space": "dpm"}
    more |= {"double": True} if order == 3 else {}
    if rng.random() < 0.3:  # these lists repeat their last sigma
        config |= {"use_karras_sigmas": True}
        more["idle"] = 1
    return case(rng, "DEISMultistepScheduler", config, "deis", "epsilon v sample", **more)


# -- EDM -------------------------------------------------------------------------------------------
def edm(peer: str, order: int = 0) -> Callable[[random.Random], Case]:
    """The network is inside EDM's preconditioning; `v_prediction` turns its sign."""

    def draw(rng: random.Random) -> Case:
        prediction = rng.choice(["epsilon", "v_prediction"])
        config = {
            "sigma_min": 0.002,
            "sigma_max": rng.choice([80.0, 300.0]),
            "sigma_data": rng.choice([0.5, 1.0]),
        }
        config |= {"sigma_schedule": rng.choice(["karras", "exponential"])}
        solver, options = "euler", {}
        if order:
            form = "sde" if peer.startswith("Cosine") else rng.choice(["ode", "sde"])
            at, variant = (
                rng.randint(1, order if form == "ode" else 2),
                rng.choice(["midpoint", "heun"]),
            )
            solver, options = DPMPP[at, form], dpm_options(at, variant, 0)
            config |= {"solver_order": at, "solver_type": variant}
            if peer.startswith("EDM"):
                config["algorithm_type"] = {"ode": "dpmsolver++", "sde": "sde-dpmsolver++"}[form]
        steps = rng.randint(2, 14)  # below 15 an order of 3 falls to 2 before the end
        drawn = case(rng, peer, {}, solver, kind="edm", space="edm", options=options, steps=steps)
        return replace(
            drawn,
            config=config | {"prediction_type": prediction},
            sign=1.0 if prediction == "epsilon" else -1.0,
        )

    return draw


# -- flow ------------------------------------------------------------------------------------------
def flow(peer: str, solver: str, **more: Any) -> Callable[[random.Random], Case]:
    def draw(rng: random.Random) -> Case:
        return replace(
            case(rng, peer, {}, solver, kind="flow", space="flow", **more),
            config={"shift": rng.choice([1.0, 3.0, 12.0])},
        )

    return draw


def flow_euler(rng: random.Random) -> Case:
    drawn = flow("FlowMatchEulerDiscreteScheduler", "euler")(rng)
    config, more = drawn.config | shape(rng), {}
    if rng.random() < 0.3:
        config |= {
            "use_dynamic_shifting": True,
            "time_shift_type": rng.choice(["exponential", "linear"]),
        }
        more = {"mu": rng.uniform(0.5, 1.2)}
    if rng.random() < 0.3:
        config["shift_terminal"] = 0.1
    stochastic = rng.random() < 0.3
    return replace(
        drawn,
        config=config | {"stochastic_sampling": stochastic},
        timesteps=more,
        solver="lcm" if stochastic else "euler",
    )


def minimax(rng: random.Random) -> Case:
    return flow("MiniMaxH3Scheduler", "euler", sign=-1.0)(rng)


def ltx(rng: random.Random) -> Case:
    config = {"eta": rng.choice([0.0, 0.5, 1.0]), "s_noise": rng.choice([1.0, 0.9])}
    n, shift = rng.randint(2, 30), rng.choice([1.0, 5.0])
    sigmas = [shift * u / (1 + (shift - 1) * u) for u in (1 - k / n for k in range(n + 1))]
    drawn = case(
        rng, "LTXEulerAncestralRFScheduler", {}, "euler", kind="flow", space="ltx", steps=n
    )
    return replace(
        drawn, config=config, timesteps={"sigmas": sigmas}, noise_scale=config["s_noise"]
    )


# -- distilled models ------------------------------------------------------------------------------
def lcm(rng: random.Random) -> Case:
    config = betas(rng) | {"clip_sample": False}
    return case(
        rng,
        "LCMScheduler",
        config,
        "lcm",
        "epsilon v sample",
        space="abar",
        steps=rng.randint(1, 12),
    )


def tcd(rng: random.Random) -> Case:
    eta = rng.choice([0.0, 0.3, 0.7, 1.0])
    more: Config = {
        "options": {"eta": eta},
        "step": {"eta": eta},
        "end": False,
        "steps": rng.randint(1, 12),
    }
    return case(
        rng,
        "TCDScheduler",
        betas(rng) | {"clip_sample": False},
        "tcd",
        "epsilon v sample",
        space="abar",
        **more,
    )


def scm(rng: random.Random) -> Case:
    data, steps = rng.choice([0.5, 1.0]), rng.randint(1, 8)
    times: Config = {} if steps == 2 else {"intermediate_timesteps": None}
    drawn = case(
        rng,
        "SCMScheduler",
        {},
        "lcm",
        kind="v",
        space="trig",
        steps=steps,
        timesteps=times,
        noise_scale=data,
    )
    return replace(drawn, config={"sigma_data": data})


def consistency(rng: random.Random) -> Case:
    config = {"clip_denoised": False, "sigma_max": 80.0, "sigma_data": rng.choice([0.5, 1.0])}
    drawn = case(
        rng,
        "CMStochasticIterativeScheduler",
        {},
        "lcm",
        kind="sample",
        space="cm",
        steps=rng.randint(1, 20),
    )
    return replace(drawn, config=config)


# -- the noise forms by order of predictions: PNDM and its kin -------------------------------------
def pndm(skip: bool, solver: str) -> Callable[[random.Random], Case]:
    def draw(rng: random.Random) -> Case:
        steps, config = counted(rng)
        config |= betas(rng) | {"skip_prk_steps": skip}
        even = steps >= 4 and (
            skip or 1000 // steps % 2 == 0
        )  # its inner calls are half of 1000 // N back
        steps = steps if even else rng.choice([4, 5, 10, 20, 25])
        return case(
            rng, "PNDMScheduler", config, solver, "epsilon", space="abar", blind=True, steps=steps
        )

    return draw


def ipndm(rng: random.Random) -> Case:
    """`trained_betas` are this scheduler's sigmas; its own list starts at pure noise, where it is
    wrong.
    """
    steps, top = rng.randint(2, 30), rng.uniform(0.9, 0.99)
    sigmas = [math.sin(top * (1 - k / steps) * math.pi / 2) for k in range(steps + 1)]
    options = {"euler_at_final": False}
    drawn = case(
        rng, "IPNDMScheduler", {}, "ipndm", kind="v", space="ipndm", steps=steps, options=options
    )
    return replace(drawn, config={"trained_betas": sigmas})


def sa_solver(rng: random.Random) -> Case:
    eta, (low, high) = rng.choice([0.0, 0.5, 1.0]), rng.choice([(0.2, 0.8), (0.0, 1.0), (0.3, 0.6)])
    ahead, back = rng.randint(1, 3), rng.randint(1, 3)
    config = (
        betas(rng)
        | spacing(rng)
        | {"predictor_order": ahead, "corrector_order": back, "lower_order_final": False}
    )
    config["tau_func"] = Tau(eta, low, high)
    options = {
        "eta": eta,
        "start": low,
        "stop": high,
        "predictor_order": ahead,
        "corrector_order": back,
    }
    more: Config = {"options": options | {"variant": "simple"}, "space": "dpm"}
    if 3 in (ahead, back):
        more["double"] = True
    return case(rng, "SASolverScheduler", config, "sa_solver", "epsilon v sample", **more)


@dataclass(frozen=True)
class Tau:
    """SA-Solver's tau, sqrt(eta) for training times in a part of the range."""

    eta: float
    low: float
    high: float

    def __call__(self, t: float) -> float:
        return math.sqrt(self.eta) if 1000 * self.low <= t <= 1000 * self.high else 0.0
