"""Odd values for every parameter of the public functions, and what may come of them."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

import timonel as tm
from timonel import compat
from timonel.core.driver import Driver


class Odd:
    """An object that is nothing that anybody takes."""


#: values by a short name; functions, so that no call can spoil another's
ODD: Mapping[str, Callable[[], Any]] = {
    "None": lambda: None, "True": lambda: True, "False": lambda: False, "0": lambda: 0,
    "1": lambda: 1,
    "-1": lambda: -1, "3": lambda: 3, "2**64": lambda: 2**64, "2.5": lambda: 2.5,
    "0.5": lambda: 0.5,
    "1e308": lambda: 1e308, "nan": lambda: math.nan, "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "1j": lambda: 1j, "''": lambda: "", "'x'": lambda: "x", "'7'": lambda: "7",
    "bytes": lambda: b"x",
    "[]": list, "[1]": lambda: [1], "[3,2,1]": lambda: [3, 2, 1], "['a']": lambda: ["a"],
    "[None]": lambda: [None],
    "[nan]": lambda: [math.nan], "()": lambda: (), "(0.2,0.6)": lambda: (0.2, 0.6), "{}": dict,
    "{'a':1}": lambda: {"a": 1}, "set": lambda: {1}, "object": Odd, "class": lambda: Odd,
    "lambda": lambda: lambda: None,
    "np.int64": lambda: np.int64(2), "np.float32": lambda: np.float32(0.5),
    "np.bool": lambda: np.bool_(True),
    "np.0d": lambda: np.array(2), "np.array": lambda: np.array([2, 1]),
    "np.2d": lambda: np.zeros((2, 2)),
    "torch.int": lambda: torch.tensor(2), "torch.float": lambda: torch.tensor(0.5),
    "torch.nan": lambda: torch.tensor(math.nan),
    "torch.bool": lambda: torch.tensor(True), "torch.1d": lambda: torch.tensor([2, 1]),
    "torch.2d": lambda: torch.ones(2, 2), "path": lambda: Path("x"), "range": lambda: range(2),
    "Decimal": lambda: Decimal(2), "Fraction": lambda: Fraction(1, 2),
}  # fmt: skip
#: those that tell most apart, for where there are very many parameters
FEW = (
    "True",
    "-1",
    "3",
    "2.5",
    "nan",
    "'x'",
    "[]",
    "[1]",
    "{'a':1}",
    "object",
    "np.int64",
    "torch.float",
    "torch.2d",
)


class Reached(Exception):
    """The call has come to its computing: what it was given is taken."""


class Target(NamedTuple):
    """A function, a good call of it, and which of its parameters are not tried."""

    name: str
    call: Callable[..., Any]
    good: Mapping[str, Any]
    parameters: tuple[str, ...]


VP = tm.VP.from_schedule()
TABLE = tm.Sampler("ddim", steps=3, options={"eta": 1.0}).compile(VP)
X = torch.ones(1, 4, 8, 8)
XL = {
    "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "num_train_timesteps": 1000,
}  # fmt: skip
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000}


def target(
    label: str, call: Callable[..., Any], /, *without: str, of: Any = None, **good: Any
) -> Target:
    """`of`: whose signature names the parameters, where it is not `call`'s."""
    known = inspect.signature(of or call).parameters
    named = [
        p.name
        for p in known.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"
    ]
    return Target(label, call, good, tuple(n for n in named if n not in without))


def trials(one: Target, values: Any = ODD) -> Iterator[tuple[str, BaseException | None]]:
    """Every call with one odd value in place of a good one, and what it raised."""
    for parameter in one.parameters:
        for label in values:
            given = {
                key: value() if isinstance(value, Fresh) else value
                for key, value in one.good.items()
            }
            raised: BaseException | None = None
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    one.call(**{**given, parameter: ODD[label]()})
            except Exception as error:
                raised = error
            yield f"{one.name}({parameter}={label})", raised


class Fresh:
    """A good value that is made anew for every call."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __call__(self) -> Any:
        return self.make()


def wrong(one: Target, values: Any = ODD) -> list[str]:
    """Calls that ended in an error of somebody else."""
    return [
        f"{what}: {type(e).__name__}: {str(e)[:110]}"
        for what, e in trials(one, values)
        if e is not None and not isinstance(e, (tm.TimonelError, Reached))
    ]


def sampled(name: str = "euler", **more: Any) -> Any:
    """`Sampler(name, …)`, and its table."""
    made = tm.Sampler(**{"name": name, "steps": 3, **more})
    return made.compile(VP)


def denoise(x: torch.Tensor, level: Any) -> torch.Tensor:
    return 0.1 * x


def started(**more: Any) -> tm.Run:
    return tm.begin(X.clone(), "euler", process=VP, steps=3, **more)


def native() -> list[Target]:
    """What needs no diffusers."""
    loop = {"x": X, "sampler": "ddim", "process": VP, "steps": 2}
    return [
        target("Sampler", sampled, of=tm.Sampler, name="euler", steps=3),
        target("Sampler.of", tm.Sampler.of, sampler="euler", steps=3),
        target("Sampler.compile", tm.Sampler("euler", steps=2).compile, process=VP),
        target("Sampler.levels", tm.Sampler("euler", steps=2).levels, process=VP),
        target("Sampler.on", tm.Sampler("euler").on, process=VP),
        target("Sampler.load", tm.Sampler.load, path="none.json"),
        target("Sampler.save", tm.Sampler("euler").save, path="none.json"),
        target("cfg", tm.cfg, scale=4.0),
        target("apg", tm.apg, scale=4.0, eta=0.5),
        target("cfg_zero", tm.cfg_zero, scale=4.0),
        target("cfg_pp", tm.cfg_pp, scale=0.6),
        target("mambo", tm.mambo, scale=4.0),
        target("tcfg", tm.tcfg, scale=4.0),
        target("zero_init", tm.zero_init, scale=4.0),
        target("pag", tm.pag), target("seg", tm.seg), target("autoguidance", tm.autoguidance),
        target("skip_layers", tm.skip_layers, layers=[1]),
        target("prompts", tm.prompts, schedule={0.0: "a", 0.5: "b"}),
        target("Guidance", lambda **k: tm.Guidance(**k).scales(TABLE), of=tm.Guidance, scale=4.0),
        target("sample", tm.sample, denoise=denoise, **loop),
        target("begin", tm.begin, **loop),
        target("start", lambda **k: tm.start(**k).result(), of=tm.start, denoise=denoise, **loop),
        target("iterate", lambda **k: list(tm.iterate(**k)), of=tm.iterate, run=Fresh(started),
        denoise=denoise),
        target("Run", tm.Run, table=TABLE, noise=tm.SeededNoise((0,))),
        target("Run.start", lambda x: tm.Run(sampled()).start(x), x=X),
        target("Run.advance", lambda raw: started().advance(raw), raw=X),
        target("Run.rewind", lambda step: started().rewind(step), step=0),
        target("Run.latents", lambda value: setattr(started(), "latents", value), value=X),
        target("Run.guidance", lambda value: setattr(started(), "guidance", value), value=None),
        target("Run.stop", lambda reason: started().stop(reason), reason=""),
        target("Run.draw_from", lambda noise: started().draw_from(noise), noise=None),
        target("Run.drive_by", lambda driver: started().drive_by(driver), driver=Driver()),
        target("Run.keep_for", lambda longer: started().keep_for(longer), longer=TABLE),
        target("Run.branch", lambda hooks: started().branch(hooks=hooks), hooks=()),
        target("Run.load", tm.Run.load, path="none.safetensors"),
        target("VP", tm.VP, betas=[0.1, 0.2]),
        target("VP.from_schedule", tm.VP.from_schedule),
        target("EDM", tm.EDM), target("Flow", tm.Flow),
        target("Flow.with_mu", tm.Flow().with_mu, mu=1.0),
        target("Flow.with_image_tokens", tm.Flow().with_image_tokens, tokens=256),
        *[target(f"VP.{at}", getattr(VP, at), **{key: 1.0}) for at, key in
          (("at_time", "time"), ("at_sigma", "sigma"), ("at_lam", "lam"), ("at_index", "index"))],
        target("SeededNoise", tm.SeededNoise, seeds=(0,)),
        target("SeededNoise()", tm.SeededNoise((0,)).__call__, row=0, like=X),
        target("BrownianNoise", tm.BrownianNoise, seeds=(0,), table=TABLE),
        target("Table.from_dict", tm.Table.from_dict, data=TABLE.to_dict()),
        target("preview", tm.preview, to="x"), target("save_steps", tm.save_steps, folder="x"),
        target("collect", tm.collect),
        target("checkpoint", tm.checkpoint, path="x"), target("guard", tm.guard),
        target("edit", tm.edit, change=abs),
        target("stop_when", tm.stop_when, condition=abs), target("progress", tm.progress),
        target("trace", tm.trace),
        target("Recipe", tm.Recipe, model="emoji", seed=0, sampler="euler", steps=2),
        target("Recipe.read", tm.Recipe.read, path="none.png"),
        target("replay", tm.replay, path="none.png"),
        target("doctor", tm.doctor, model="emoji"),
        target("LatentRGB", tm.LatentRGB, weight=torch.ones(3, 4), bias=torch.zeros(3)),
    ]  # fmt: skip


def set_up(scheduler: Any, **asked: Any) -> Any:
    """`set_timesteps`, and a step."""
    scheduler.set_timesteps(**asked)
    return scheduler.step(0.1 * X, scheduler.timesteps[0], X).prev_sample


def scheduled(**changes: Any) -> Any:
    return set_up(tm.Scheduler.from_config(XL, **changes), num_inference_steps=3)


def schedulers() -> list[Target]:
    """The scheduler of timonel, and a class of compat for each kind of list."""

    def ready(config: Any = XL, **more: Any) -> Any:
        made = tm.Scheduler.from_config(config, **more)
        made.set_timesteps(3)
        return made

    found = [
        target("Scheduler", lambda **k: set_up(tm.Scheduler(**k), num_inference_steps=3),
        of=tm.Scheduler),
        target("Scheduler.from_config", tm.Scheduler.from_config, "return_unused_kwargs",
        config=XL),
        target("Scheduler.from_config(…)", scheduled, of=tm.Scheduler),
        target("set_timesteps", lambda **k: set_up(tm.Scheduler.from_config(XL), **k), "device",
               of=tm.Scheduler.set_timesteps, num_inference_steps=3),
        target("set_timesteps flow",
        lambda **k: set_up(tm.Scheduler.from_config(FLOW, sampler="euler"), **k), "device",
               of=tm.Scheduler.set_timesteps, num_inference_steps=3),
        target("step", lambda **k: ready().step(**k), of=tm.Scheduler.step, model_output=0.1 * X,
        timestep=999,
               sample=X),
        target("add_noise", lambda **k: ready().add_noise(**k), of=tm.Scheduler.add_noise,
        original_samples=X, noise=X,
               timesteps=torch.tensor([500])),
        target("get_velocity", lambda **k: ready().get_velocity(**k), of=tm.Scheduler.get_velocity,
        sample=X, noise=X,
               timesteps=torch.tensor([500])),
        target("set_shift", lambda shift: ready(FLOW, sampler="euler").set_shift(shift)),
        target("time_shift", lambda **k: ready(FLOW, sampler="euler").time_shift(**k), "t",
        of=tm.Scheduler.time_shift,
               mu=1.0, sigma=1.0, t=0.5),
        target("index_for_timestep", lambda **k: ready().index_for_timestep(**k),
        of=tm.Scheduler.index_for_timestep,
               timestep=999),
        target("set_begin_index", lambda begin_index: ready().set_begin_index(begin_index)),
    ]  # fmt: skip
    for name, flags in (
        ("DPMSolverMultistep", {}), ("EulerDiscrete", {}), ("LCM", {}), ("DDIM", {}),
        ("FlowMatchEulerDiscrete", {}), ("EDMEuler", {}),
    ):  # fmt: skip
        cls = getattr(compat, f"{name}Scheduler")
        found.append(
            target(f"{name}.set_timesteps", lambda cls=cls, **k: set_up(cls(), **k), "device",
            of=cls.set_timesteps,
                   num_inference_steps=3, **flags)
        )  # fmt: skip
        found.append(
            target(
                f"{name}.from_config",
                cls.from_config,
                "return_unused_kwargs",
                config={**XL, "_class_name": None},
            )
        )
    return found


def classes() -> list[Target]:
    """The constructors of all classes of compat."""
    made = []
    for name in compat.__all__:
        cls = getattr(compat, name)
        if isinstance(cls, type) and issubclass(cls, tm.Scheduler) and name != "IPNDMScheduler":
            made.append(target(name, lambda cls=cls, **k: cls(**k).set_timesteps(4), of=cls))
    return made


AXES = (
    "model",
    "sampler",
    "steps",
    "seed",
    "seeds",
    "guidance",
    "guidance_until",
    "grid",
    "negative_prompt",
    "width",
)
PIPE = (
    "prompt",
    "height",
    "width",
    "num_images_per_prompt",
    "generator",
    "guidance_scale",
    "output_type",
)


def helms(every: bool = False) -> list[Target]:
    """A helm's own arguments, checked and not computed, and a pipeline's arguments in a call of one
    step.
    """
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    shaped = (
        "latents",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )  # only its network knows their sizes
    rest = (
        shaped
        if every
        else tuple(set(inspect.signature(helm.pipe.__call__).parameters) - set(PIPE))
    )

    def ready(**given: Any) -> None:
        helm.ready((), {"prompt": "red apple", **given})

    def call(**given: Any) -> Any:
        return helm(**{"prompt": "red apple", "steps": 1, "output_type": "latent", **given})

    return [
        target("Helm()", ready, of=tm.Helm.__call__, steps=1),
        target("Helm", tm.Helm, pipe="none"),
        target("Engine", tm.Engine, model="none"),
        target(
            "Helm.start",
            lambda hooks: helm.start(
                "red apple", steps=1, output_type="latent", hooks=hooks
            ).result(),
        ),
        target("Helm(…)", call, *rest, of=helm.pipe.__call__),
    ]


def jobs() -> list[Target]:
    """The long jobs; whoever tries them ends them where they would compute."""
    helm, picture = tm.Helm("emoji"), Image.new("RGB", (64, 64))
    names = [
        name
        for name in inspect.signature(tm.tune).parameters
        if name in ("prompts", "log", "start")
    ]
    return [
        target("compare", tm.compare, subjects="red apple", sampler="euler", steps=4),
        Target("compare axes", tm.compare, {"subjects": "red apple"}, AXES),
        target("tune", tm.tune, *names, model=helm, steps=4),
        target("invert", tm.invert, helm=helm, image=picture, prompt="red apple", steps=4),
    ]
