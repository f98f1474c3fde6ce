"""Whether a key of a scheduler's config changes anything.

What a caller sets acts, or is refused with what would act. What a checkpoint's config carries is
never refused: real ones carry keys of other classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ... import words
from ...core.grids import Grid
from ...core.process import Flow, Process
from ...core.process.config import from_config, name_of, read
from ...core.process.vp import SCHEDULES
from ...errors import ArgumentError, TimonelError
from ..classes.flags import REMEDIES
from ..classes.rule import SHAPES
from . import kept, model, requested_levels

Config = Mapping[str, Any]
# checked where a sampler is made
SAMPLER = ("sampler", "sampler_options", "sampler_noise", "sampler_table")
# pipelines' own constructors write these into any scheduler
WRITTEN = ("steps_offset", "clip_sample", "skip_prk_steps")
# of the trial: enough for every rule of a grid, and a picture's size for dynamic shifts
STEPS, TOKENS = 6, 1111
SIZES_OF_SAMPLES = [10 ** (-k / 4) for k in range(17)]
BETAS = (
    "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "snr_shift_scale",
    "num_train_timesteps",
)  # fmt: skip
SIZES = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type")
WORDS = {**model.CHOICES, "beta_schedule": SCHEDULES}  # the values of keys that take a word
#: which keys set the levels of a process
LEVELS = {
    "vp": "beta_start, beta_end, beta_schedule and timestep_spacing",
    "edm": "sigma_min, sigma_max and sigma_data",
    "ve": "sigma_min, sigma_max and sigma_data",
    "flow": "shift, or use_dynamic_shifting with base_shift and max_shift, and shift_terminal",
}
#: which processes a key is for, where it is not for all
FOR = {
    **dict.fromkeys((*BETAS[:-1], "steps_offset"), ("vp",)),
    **dict.fromkeys((*SIZES, "use_dynamic_shifting"), ("flow",)),
    **dict.fromkeys(("shift", "flow_shift", "shift_terminal", "invert_sigmas"), ("flow",)),
    "sigma_data": ("edm", "ve"), "clock": ("edm", "ve"), "timestep_type": ("vp", "edm"),
}  # fmt: skip


def check(resolve: Callable[[Config], Config], changes: Config, defaults: Config) -> None:
    """Check that changes of a config act.

    Args:
        resolve: the whole config for changes.
        changes: keys with their values.
        defaults: of all keys.

    Raises:
        ArgumentError: a key does nothing.
    """
    changes = {key: value for key, value in changes.items() if key not in SAMPLER}
    for key in idle(lambda changes: seen(resolve(changes)), changes, defaults):
        value = changes[key]
        raise ArgumentError(
            f"{key}={value!r} changes nothing: {remedy(key, value, resolve(changes))}"
        )


def idle(
    see: Callable[[Config], tuple[Any, ...] | None], changes: Config, defaults: Config
) -> list[str]:
    """The keys of changes that change nothing and do not say what is so anyhow.

    Args:
        see: all that a config decides, for changes; None where nothing can be seen.
        changes: keys with their values.
        defaults: of all keys.
    """
    changed = {key: value for key, value in changes.items() if value != defaults.get(key)}
    now = see(changes) if changed else None
    if now is None:
        return []

    def same(changes: Config) -> bool:
        try:
            return see(changes) == now
        except TimonelError:
            return False

    idle = []
    for key, value in changed.items():
        others = _others(key, value, defaults.get(key))
        if not _agrees(key, value, now) and all(same({**changes, key: other}) for other in others):
            idle.append(key)
    return idle


def seen(config: Config) -> tuple[Any, ...] | None:
    """Everything that a config decides before a network is called, in numbers.

    Why it has no levels is said where its steps are chosen, which a sampler with another grid may
    still change.

    Returns:
        None where it has no levels.
    """
    process, prediction = read({**config, "_class_name": ""})
    name = name_of(process)
    read_by_pipelines = config["sigma_data"] if name == "ve" else None
    grid = _visited(process, config)
    if grid is None:
        return None
    listed = (tuple(v.tolist()) for v in (grid.alpha, grid.sigma, grid.time))
    return (
        name,
        prediction,
        read_by_pipelines,
        grid.name,
        *listed,
        *shaped(config, model.shape(config)),
    )


def _visited(process: Process, config: Config) -> Grid | None:
    """The levels of a few steps."""
    sampler = kept.sampler(config)
    steps = STEPS if sampler.fitted is None else sampler.steps
    try:
        return requested_levels.of(
            sampler,
            process,
            config,
            requested_levels.Requested(steps, mu=mu(process, config)),
            None,
        )[1]
    except TimonelError:
        return None


def mu(process: Process, config: Config) -> float | None:
    """What a pipeline makes of a picture's size, where the config asks for it."""
    if not isinstance(process, Flow) or not config.get("use_dynamic_shifting"):
        return None
    return (
        abs(math.log(process.with_image_tokens(TOKENS).shift)) + 0.01
    )  # positive for a linear shift too


def shaped(config: Config, shape: Callable[[torch.Tensor], torch.Tensor] | None) -> tuple[Any, ...]:
    """What is done to denoised predictions of many sizes, and how; two ways may agree at some."""
    if shape is None:
        return ()
    clean = torch.logspace(-2, 4, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    values = tuple(tuple(shape(clean * size).flatten().tolist()) for size in SIZES_OF_SAMPLES)
    return bool(config.get("thresholding")), *values


def _others(key: str, value: Any, default: Any) -> list[Any]:
    """Other values of a key, by which it shows whether it acts."""
    words = [word for word in WORDS.get(key, ()) if word != value]
    if words or isinstance(value, bool) or not isinstance(value, (int, float)):
        return [default, *words]
    near = value + 1 if isinstance(value, int) else 0.9 * value
    return [default, near, value - 1 if isinstance(value, int) else near]


def _agrees(key: str, value: Any, now: tuple[Any, ...]) -> bool:
    """Whether a key says what is so anyhow."""
    if key == "process":
        return bool(value == now[0])
    if key == "prediction_type":
        return bool(words.prediction(value) == now[1])
    if key == "use_flow_sigmas":
        return bool(now[0] == "flow")
    if key == "timestep_type":
        return bool(value == "continuous" and now[0] in ("edm", "ve"))
    if key in SHAPES or key == "timestep_spacing":
        return bool(SHAPES.get(key, value) == now[3])
    return False


def remedy(key: str, value: Any, config: Config) -> str:
    """What would act instead of a key that does not."""
    process = from_config({**config, "_class_name": ""})
    kind, name = name_of(process), kept.sampler(config).name
    if key in SHAPES or key == "timestep_spacing":
        grid = SHAPES.get(key, value)
        if kept.sampler(config).fitted is not None:
            return f"the fitted sampler {name!r} has levels of its own; leave it out"
        return (
            f"the levels are set by {_setter(config, kind)}; take sampler='{name}/{grid}' instead"
        )
    if kind not in FOR.get(key, (kind,)):
        what = " and ".join(FOR[key])
        return (
            f"it is a key of {what} models, and this model's process is {kind!r}; leave it out"
            + _instead(kind)
        )
    return f"{_within(key, kind, config, name)}"


def _instead(kind: str) -> str:
    return f" (its levels follow from {LEVELS[kind]})" if kind in LEVELS else ""


def _setter(config: Config, kind: str) -> str:
    """What sets the levels instead of a key."""
    sampler = kept.sampler(config)
    if sampler.fitted is not None or sampler.grid is not None:
        return f"the sampler {sampler.label!r}"
    flag = next((flag for flag in SHAPES if config[flag]), None)
    return f"{flag}=True" if flag else f"the {kind} process and the sampler {sampler.label!r}"


def _within(key: str, kind: str, config: Config, name: str) -> str:
    """Of a key that other keys of the same model keep from acting."""
    if key in BETAS and kind == "vp" and config["trained_betas"] is not None:
        return "trained_betas are the betas; pass trained_betas=None as well, or leave it out"
    if key in ("beta_start", "beta_end"):
        return (
            f"beta_schedule={config['beta_schedule']!r} has no ends; pass beta_schedule='linear' as"
            " well"
        )
    if key in ("sigma_min", "sigma_max"):
        return f"it is an end of grids between two levels; take sampler='{name}/karras' as well"
    if key == "rho":
        return f"it spaces Karras' sigmas; take sampler='{name}/karras' as well"
    thresholds = config["thresholding"]
    fixed = {
        "sample_max_value": (
            "pass thresholding=True as well" + ("; it acts above 1" if thresholds else "")
        ),
        "clip_sample_range": (
            f"pass {'thresholding=False' if thresholds else 'clip_sample=True'} as well"
        ),
        "steps_offset": (
            f"it moves the list of one spacing; take sampler='{name}/leading' as well"
        ),
        "original_inference_steps": "it is of the grid 'lcm'; take sampler='lcm/lcm' as well",
        "num_train_timesteps": f"no level is counted on this grid; leave it out{_instead(kind)}",
    }
    return fixed.get(key) or REMEDIES.get(key) or f"leave it out{_instead(kind)}"
