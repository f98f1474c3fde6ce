"""diffusers' schedulers on data N(0.4, 0.6²), where the flow is known: image to image, linspace,
ends, thresholds.

`docs/differences.md` names these tests.
"""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import timonel.compat as compat
import timonel.core.prediction as predictions
from timonel.errors import ArgumentError

MEAN, STD = 0.4, 0.6
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TABLE = diffusers.DDIMScheduler(**SD).alphas_cumprod.double()
FLAGS: dict[str, dict[str, Any]] = {
    "LMSDiscreteScheduler": {},
    "PNDMScheduler": {"skip_prk_steps": True, "steps_offset": 1},
    "DDIMScheduler": {"clip_sample": False},
}


def signal(time: Tensor) -> Tensor:
    """alpha² at a time, log sigma linear between the whole ones."""
    low = time.double().floor().long().clamp(max=998)
    ratio = torch.log((1 - TABLE) / TABLE)
    return torch.sigmoid(-torch.lerp(ratio[low], ratio[low + 1], time.double() - low))


def spread(abar: Tensor) -> Tensor:
    return torch.sqrt(abar * STD**2 + 1 - abar)


def distance(library: Any, name: str, steps: int, kept: float, **flags: Any) -> float:
    """The largest distance from the exact flow, of a loop that begins where `kept` of the steps are
    left.
    """
    scheduler = getattr(library, name)(**SD, **{**FLAGS[name], **flags})
    scheduler.set_timesteps(steps)
    begin = len(scheduler.timesteps) - int(steps * kept) if kept < 1 else 0
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    first = signal(scheduler.timesteps[begin])
    unit = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.sqrt(first) * MEAN + spread(first) * unit
    x = x / scheduler.scale_model_input(
        torch.ones_like(x), scheduler.timesteps[begin]
    )  # the class's coordinates
    for t in scheduler.timesteps[begin:]:
        abar, seen = signal(t), scheduler.scale_model_input(x, t)
        noise = torch.sqrt(1 - abar) * (seen - torch.sqrt(abar) * MEAN) / spread(abar) ** 2
        x = scheduler.step(noise, t, x)[0]
    return float((x - MEAN - STD * unit).abs().max())


# .136 against .0019 at 20 steps, .055 against .0002 at 50
def test_lms_of_diffusers_begins_on_the_way_with_weights_of_order_four_and_one_slope() -> None:
    for steps in (20, 50):
        theirs, mine = (
            distance(lib, "LMSDiscreteScheduler", steps, 0.5) for lib in (diffusers, compat)
        )
        assert theirs > 50 * mine
    scheduler = diffusers.LMSDiscreteScheduler(**SD)
    scheduler.set_timesteps(20)
    scheduler.set_begin_index(10)
    one = torch.ones(1, dtype=torch.float64)
    scheduler.scale_model_input(one, scheduler.timesteps[10])
    moved = float(
        scheduler.step(one, scheduler.timesteps[10], one * 0)[0]
    )  # .449, where the levels are .235 apart
    assert moved == pytest.approx(
        1.91 * float(scheduler.sigmas[11] - scheduler.sigmas[10]), rel=0.01
    )


# .068 against .022 at 20 steps, .028 against .0026 at 50; from pure noise both .017 and .0020
def test_pndm_of_diffusers_begins_on_the_way_one_level_off_its_list() -> None:
    for steps, factor in ((20, 3), (50, 10)):
        theirs, mine = (distance(lib, "PNDMScheduler", steps, 0.5) for lib in (diffusers, compat))
        assert theirs > factor * mine
        whole = [distance(lib, "PNDMScheduler", steps, 1.0) for lib in (diffusers, compat)]
        assert whole[0] == pytest.approx(whole[1], rel=1e-3)


# DDIM .162 against .362 at 10 steps, PNDM .110 against .079; a step that is too short may be the
# luckier one
def test_ddim_and_pndm_of_diffusers_leave_the_list_of_linspace() -> None:
    scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False, timestep_spacing="linspace")
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[:3].tolist() == [999, 888, 777]
    x = torch.ones(1, dtype=torch.float64)
    moved = scheduler.step(x * 0, 999, x)[0]
    assert float(moved) == pytest.approx(
        float((TABLE[899] / TABLE[999]).sqrt()), rel=1e-5
    )  # 899, not 888
    for name, nearer in (("DDIMScheduler", diffusers), ("PNDMScheduler", compat)):
        found = {
            lib: distance(lib, name, 10, 1.0, timestep_spacing="linspace")
            for lib in (diffusers, compat)
        }
        assert found[nearer] == min(found.values()) < 0.75 * max(found.values())


def test_sa_solver_of_diffusers_adds_the_noise_of_betas_to_a_flow() -> None:
    """At the level where half is noise it gives .28 of the picture and .96 of noise."""
    for library, wanted in ((diffusers, (0.2803, 0.9599)), (compat, (0.5005, 0.4995))):
        scheduler = library.SASolverScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction"
        )
        scheduler.set_timesteps(10)
        one = torch.ones(1, 1, 1, 1)
        at = torch.tensor([500 if library is diffusers else float(scheduler.timesteps[5])])
        if library is diffusers:
            scheduler.set_begin_index(5)
            at = scheduler.timesteps[5:6]
        parts = [float(scheduler.add_noise(*pair, at)) for pair in ((one, one * 0), (one * 0, one))]
        assert parts == pytest.approx(wanted, abs=1e-3)


def test_edm_dpm_heun_to_sigma_min_ends_in_nan_in_diffusers() -> None:
    """The last level stands twice, and the step over nothing is 0 / 0."""
    for library, finite in ((diffusers, False), (compat, True)):
        scheduler = library.EDMDPMSolverMultistepScheduler(
            solver_type="heun", final_sigmas_type="sigma_min"
        )
        scheduler.set_timesteps(20)
        x = (
            torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
            * scheduler.init_noise_sigma
        )
        for t in scheduler.timesteps:
            x = scheduler.step(torch.zeros_like(scheduler.scale_model_input(x, t)), t, x)[0]
        assert bool(x.isfinite().all()) is finite


def test_a_sample_max_value_below_one_doubles_the_sample_in_diffusers() -> None:
    """`clamp(s, min=1, max=0.5)` is 0.5, by which the sample is divided; Imagen's bound is never
    below 1.
    """
    scheduler = diffusers.DDIMScheduler(
        **SD, thresholding=True, sample_max_value=0.5, clip_sample=False
    )
    scheduler.set_timesteps(10)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1) * 0.3
    clean = scheduler.step(torch.zeros_like(x), scheduler.timesteps[-1], x).pred_original_sample
    assert float(clean.abs().max()) == pytest.approx(0.6, abs=1e-3)


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"])
def test_the_bound_is_the_only_way_in_which_thresholding_differs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With diffusers' bound put in the place of Imagen's, the two end with the same sample; EDM's
    is 115 times ours.
    """

    def divided(clean: Tensor, ratio: float, top: float) -> Tensor:
        limit = (
            torch.quantile(clean.flatten(1).abs(), ratio, dim=1).clamp(1, top).reshape(-1, 1, 1, 1)
        )
        return torch.maximum(torch.minimum(clean, limit), -limit) / limit

    def result(library: Any) -> Tensor:
        scheduler = getattr(library, name)(
            thresholding=True, dynamic_thresholding_ratio=0.87, sample_max_value=0.5
        )
        scheduler.set_timesteps(10)
        x = torch.linspace(0, 1, 768, dtype=torch.float64).reshape(4, 3, 8, 8)
        for t in scheduler.timesteps:
            x = scheduler.step(
                x * t.double() / (t + 1), t, scheduler.scale_model_input(x, t)
            ).prev_sample
        return x

    theirs, ours = result(diffusers), result(compat)
    assert float((theirs - ours).abs().max()) > 0.3 * float(theirs.abs().max())
    monkeypatch.setattr(predictions, "threshold", divided)
    assert torch.allclose(result(compat), theirs, rtol=1e-4, atol=1e-6)


FLOWS = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler",
         "UniPCMultistepScheduler")  # fmt: skip


def on_a_flow(library: Any, name: str, steps: int = 20, **flags: Any) -> tuple[float, float]:
    """The largest t of a class's list on a flow, and the rms distance of its result from the exact
    one.
    """
    scheduler = getattr(library, name)(
        use_flow_sigmas=True, prediction_type="flow_prediction", **flags
    )
    scheduler.set_timesteps(steps)
    unit = torch.randn(
        1, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    x = unit
    for time in scheduler.timesteps:
        t = float(time) / 1000
        away = (x - (1 - t) * MEAN) / (((1 - t) * STD) ** 2 + t**2)
        flow = t * away - MEAN - (1 - t) * STD**2 * away
        x = scheduler.step(flow, time, x).prev_sample
    return float(scheduler.sigmas.max()), float((x - MEAN - STD * unit).pow(2).mean().sqrt())


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered in log:RuntimeWarning")
@pytest.mark.parametrize("flag", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("name", FLOWS)
def test_a_sigma_flag_on_a_flow_lists_sigmas_of_betas_as_t_in_diffusers(
    name: str, flag: str
) -> None:
    """t lies between 0 and 1; diffusers reads sigma / alpha up to 157 as t. UniPC on Karras' levels
    converts them.
    """
    (top, error), (mine, ours) = (
        on_a_flow(library, name, **{flag: True}) for library in (diffusers, compat)
    )
    assert mine <= 1
    assert ours < 0.03
    if (name, flag) == ("UniPCMultistepScheduler", "use_karras_sigmas"):
        assert (top, error) == pytest.approx((mine, ours), rel=1e-3)
    else:
        assert top > 100
        assert error != error


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
def test_deis_on_a_flow_leaves_its_last_level_in_the_sample_in_diffusers() -> None:
    """Its list ends with the last level twice: .300 of noise at 8 steps and shift 3."""
    theirs = diffusers.DEISMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    theirs.set_timesteps(8)
    assert float(theirs.sigmas[-1]) == float(theirs.sigmas[-2]) == pytest.approx(0.29976)
    (_, error), (_, ours) = (
        on_a_flow(library, "DEISMultistepScheduler") for library in (diffusers, compat)
    )
    assert error > 8 * ours


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.parametrize(
    "name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"]
)
def test_as_many_steps_as_training_levels_end_in_nan_in_diffusers(name: str) -> None:
    """N + 1 rounded times for N training levels: one stands twice, and the step over nothing is 0 /
    0.
    """
    scheduler = getattr(diffusers, name)(num_train_timesteps=100)
    scheduler.set_timesteps(100)
    assert int((scheduler.timesteps[1:] == scheduler.timesteps[:-1]).sum()) == 1
    x = torch.ones(1, 1, 2, 2)
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x)[0]
    assert bool(x.isnan().all())


def exact(abar: Tensor, x: Tensor) -> Tensor:
    """The noise in a sample of unit variance at a level, as a network that knows the data says."""
    return torch.sqrt(1 - abar) * (x - torch.sqrt(abar) * MEAN) / spread(abar) ** 2


def from_noise(scheduler: Any, steps: int) -> Tensor:
    """The end of a loop as pipelines write it, from pure noise, with a network that is told a
    training time.
    """
    scheduler.set_timesteps(steps)
    x = (
        torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        * scheduler.init_noise_sigma
    )
    for t in scheduler.timesteps:
        x = scheduler.step(
            exact(signal(t.clamp(0, 999)), scheduler.scale_model_input(x, t)).float(), t, x
        )[0]
    return x


# the mean at 20 and 50 steps: .408, .409 with Euler's class, -.005, -.004 with EDM's, which tells
# 0.25·log(sigma)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [20, 50])
def test_edm_euler_of_diffusers_on_an_image_model_loses_the_picture_and_ours_refuses(
    steps: int,
) -> None:
    config = diffusers.EulerDiscreteScheduler(**SD).config
    right, wrong = (
        float(from_noise(cls.from_config(config), steps).mean())
        for cls in (diffusers.EulerDiscreteScheduler, diffusers.EDMEulerScheduler)
    )
    assert right == pytest.approx(MEAN, abs=0.02)
    assert abs(wrong - MEAN) > 0.35
    with pytest.raises(ArgumentError, match=r"not for a vp model.*EulerDiscreteScheduler"):
        compat.EDMEulerScheduler.from_config(config)


# diffusers' one step leaves the noise: mean .043, std 1.03; from the noisiest level the mean is
# .4006
def test_the_only_step_of_leading_gives_the_noise_back_in_diffusers() -> None:
    means = []
    for lib in (diffusers, compat):
        made = from_noise(
            lib.DDIMScheduler(**SD, clip_sample=False, steps_offset=1, set_alpha_to_one=False), 1
        )
        means.append(float(made.mean()))
    assert abs(means[0] - MEAN) > 0.35
    assert abs(means[1] - MEAN) < 0.05


# abar at time 499 is .0786, diffusers' class has its own, .278: predictions are up to .71 off,
# their mean .19 for .39
@pytest.mark.filterwarnings("ignore")
def test_a_class_made_from_a_config_keeps_the_betas_of_the_model_which_diffusers_exchanges() -> (
    None
):
    model = (
        diffusers.PNDMScheduler()
    )  # its betas are the defaults of its class, which its config marks as not chosen
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    abar = model.alphas_cumprod[499].double()
    noise = exact(abar, x.double())
    made = (lib.LCMScheduler.from_config(model.config) for lib in (diffusers, compat))
    bars = [abar, *(scheduler.alphas_cumprod[499].double() for scheduler in made)]
    clean = [(x - torch.sqrt(1 - bar) * noise) / torch.sqrt(bar) for bar in bars]
    assert float((clean[1] - clean[0]).abs().max()) > 0.5
    assert float(clean[0].mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(clean[1].mean()) < 0.25
    assert torch.allclose(clean[2], clean[0], atol=1e-5)


ADAMS = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


# Dance Diffusion in 3 steps: .34 of the largest value apart; .0075 with the first prediction, 3e-7
# with both changes
def test_ipndm_of_diffusers_with_its_first_prediction_and_slopes_of_a_finite_time_is_ours() -> None:
    start = torch.randn(1, 2, 64, generator=torch.Generator().manual_seed(0)).double()

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(1.3 * x + 0.2 * float(t))

    def theirs(counts: bool) -> Tensor:
        scheduler, x = diffusers.IPNDMScheduler(), start
        scheduler.set_timesteps(3)
        for i, t in enumerate(scheduler.timesteps):
            raw = network(x, t)
            x = scheduler.step(raw, t, x).prev_sample
            x = x - scheduler.alphas[1] * raw if counts and i == 0 else x  # at pure noise x0 = -raw
        return x

    def finite_time() -> Tensor:
        """Adams over u = sigma / (alpha + sigma): d(x / (alpha + sigma)) / du = noise - x0."""
        scheduler, x, slopes = diffusers.IPNDMScheduler(), start, []
        scheduler.set_timesteps(3)
        alpha, sigma = scheduler.alphas.double(), scheduler.betas.double()
        size, u = alpha + sigma, sigma / (alpha + sigma)
        for i, t in enumerate(scheduler.timesteps):
            raw = network(x, t)
            slopes.insert(0, (sigma[i] * x + alpha[i] * raw) - (alpha[i] * x - sigma[i] * raw))
            slope = sum(w * v for w, v in zip(ADAMS[min(i, 3)], slopes, strict=False))
            x = (x / size[i] + (u[i + 1] - u[i]) * slope) * size[i + 1]
        return x

    ours, x = compat.IPNDMScheduler(), start
    ours.set_timesteps(3)
    for t in ours.timesteps:
        x = ours.step(network(x, t), t, x).prev_sample
    dropped, counted, both = (
        float((end - x).abs().max() / x.abs().max())
        for end in (theirs(False), theirs(True), finite_time())
    )
    assert dropped > 0.3
    assert 0.005 < counted < 0.02
    assert both < 1e-5
