"""The public members of diffusers' classes beside the protocol, with their values there.

Lists of sigma have one entry for each network call, where diffusers' classes of two calls a step
list the next step's level twice. What only a step of diffusers needs is not there; `INTERNAL` says
of each name why, and so does the error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import grids
from ..core.process import EDM, Flow, Level, Process, double
from ..core.run import Run
from ..errors import ArgumentError, RunError, finite
from ..pipelines.classes.rule import before_end

_STEP = (
    "it is a part of diffusers' step; here a step is a row of scheduler.run.table, which"
    " scheduler.step applies"
)
HIDDEN = (
    "it is a part of diffusers' step, or its state; a pipeline that reads it needs diffusers' own"
    " class"
)
_STATE = (
    "it is what diffusers' step remembers; here the run does: scheduler.run.latents, .denoised,"
    " .row"
)
_LIST = (
    "how calls are grouped is in scheduler.run.table.step, and the times are scheduler.timesteps"
)
#: public names of diffusers' classes that have no counterpart, and why
INTERNAL: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "deis_first_order_update", "dpm_solver_first_order_update",
            "get_coefficients_exponential_negative", "get_coefficients_exponential_positive",
            "get_coefficients_fn", "get_lms_coefficient", "get_mult", "get_variables",
            "lagrange_polynomial_coefficient",
            "multistep_deis_second_order_update", "multistep_deis_third_order_update",
            "multistep_dpm_solver_second_order_update", "multistep_dpm_solver_third_order_update",
            "multistep_uni_c_bh_update", "multistep_uni_p_bh_update", "sigmas_down",
            "sigmas_interpol", "sigmas_up", "singlestep_dpm_solver_second_order_update",
            "singlestep_dpm_solver_third_order_update", "singlestep_dpm_solver_update",
            "stochastic_adams_bashforth_update", "stochastic_adams_moulton_update",
        ),
        _STEP,
    ),
    **dict.fromkeys(
        (
            "cur_model_output", "cur_sample", "derivatives", "dt", "last_noise", "last_sample",
            "mid_point_sigma", "model_outputs", "noise_sampler", "prev_derivative", "sample",
            "this_corrector_order", "this_predictor_order", "this_order", "timestep_list",
        ),
        _STATE,
    ),
    **dict.fromkeys(("get_order_list", "order_list"), _LIST),
    "set_scale_factors": "a run keeps the size of its sample; enlarge it between two runs",
}  # fmt: skip
#: keys of the config that diffusers' classes have as attributes too
DIRECT = (
    "disable_corrector", "noise_sampler_seed", "solver_p", "tau_func", "use_beta_sigmas",
    "use_exponential_sigmas", "use_karras_sigmas", "variance_type",
)  # fmt: skip
DATA = 0.5  # sigma_data of the boundary conditions of arXiv 2310.04378, app. B


class Members:
    """The members that several classes have; `Compat` is one of these."""

    process: Process
    config: Any
    pndm_order = 4
    _first_shift: float | None = None  # of the config, where `set_shift` has changed it

    if TYPE_CHECKING:
        run: Run
        current: Run | None

    @property
    def one(self) -> Tensor:
        """1, as DDPM's class has it."""
        return torch.tensor(1.0)

    @property
    def predict_x0(self) -> bool:
        """Whether steps are made from predictions of the clean sample; always."""
        return True

    @property
    def log_sigmas(self) -> Tensor:
        """log(sigma / alpha) of every training level, (T,), as the DPM2 classes have it."""
        return -self.process.at_index(
            torch.arange(self.process.train_steps, dtype=torch.float64)
        ).lam.float()

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call is the first of a step."""
        run = self.current
        return (
            run is None
            or run.row == run.table.nfe
            or run.row == run.table.first_row(run.table.step[run.row])
        )

    @property
    def lower_order_nums(self) -> int:
        """How many predictions the next step has before its own, up to the order."""
        keys = [
            key
            for key in ("solver_order", "predictor_order", "corrector_order")
            if key in self.config
        ]
        if not keys:
            raise AttributeError("lower_order_nums")
        top = max(int(self.config[key]) for key in keys)
        return 0 if self.current is None else min(self.current.row, top)

    def convert_model_output(
        self, model_output: Tensor, *args: Any, sample: Tensor | None = None
    ) -> Tensor:
        """The prediction that the next step is made from.

        Args:
            model_output: the network's raw output, (batch, …).
            *args: the time and the sample, as older scripts pass them.
            sample: the sample, in the coordinates of the class (`coordinates.py`).

        Returns:
            The clean sample; of `algorithm_type` "deis" and "dpmsolver" the noise.

        Raises:
            ArgumentError: there is no sample.
            RunError: the run is complete.
        """
        x = args[-1] if sample is None and args else sample
        if x is None:
            raise ArgumentError("convert_model_output needs the sample: give sample=")
        run = self.run
        if run.row == run.table.nfe:
            raise RunError("the run is complete; there is no level left to read a prediction at")
        clean = run.program.denoised(run.row, x, model_output)
        if self.config.get("algorithm_type") not in ("deis", "dpmsolver"):
            return clean
        return (x - run.level.alpha * clean) / run.level.sigma

    # -- flows -------------------------------------------------------------------------------------
    @property
    def sigma_min(self) -> float:
        """The smallest level that the class's own lists reach: sigma / alpha, of a flow t."""
        process = self.process
        if not isinstance(process, Flow):
            return process.sigma_min
        low = 1 / process.train_steps
        s = 1.0 if self.config.get("use_dynamic_shifting") else self._first_shift or process.shift
        return s * low / (1 + (s - 1) * low)

    def set_shift(self, shift: float) -> None:
        """Shift the levels of the next `set_timesteps` by `shift`; the config says so too.

        As in diffusers the list still ends where the shift before would have ended it.
        """
        first = self._first_shift or getattr(self.process, "shift", None)
        super().set_shift(shift)  # type: ignore[misc]
        self._first_shift = first

    # -- EDM ---------------------------------------------------------------------------------------
    def _data(self, name: str) -> float:
        if not isinstance(self.process, EDM):
            raise ArgumentError(
                f"{name} is of EDM models; this scheduler is of a {self.process.kind} process"
            )
        return self.process.sigma_data

    def precondition_inputs(self, sample: Tensor, sigma: float | Tensor) -> Tensor:
        """`sample / sqrt(sigma² + sigma_data²)`, of a sample `x0 + sigma·noise`.

        Source: arXiv 2206.00364, table 1.
        """
        data = self._data("precondition_inputs")
        return sample / (sigma**2 + data**2) ** 0.5

    def _get_conditioning_c_in(self, sigma: float | Tensor) -> float | Tensor:
        """`1 / sqrt(sigma² + sigma_data²)`, which Cosmos' pipeline of video to world reads."""
        return 1 / (sigma**2 + self._data("_get_conditioning_c_in") ** 2) ** 0.5

    def precondition_noise(self, sigma: float | Tensor) -> Tensor:
        """The network's time, `0.25·log(sigma)` where the config names no other clock, (n,).

        Source: arXiv 2206.00364, table 1.
        """
        self._data("precondition_noise")
        assert isinstance(self.process, EDM)
        return self.process.network_time(
            sigma if isinstance(sigma, Tensor) else torch.tensor([finite("sigma", sigma, 0)])
        )

    def precondition_outputs(
        self, sample: Tensor, model_output: Tensor, sigma: float | Tensor
    ) -> Tensor:
        """The clean sample from the network's output at a sample `x0 + sigma·noise`.

        Source: arXiv 2206.00364, eq. 7.
        """
        data = self._data("precondition_outputs")
        size = (sigma**2 + data**2) ** 0.5
        if self.config.get("prediction_type") == "v_prediction":
            return data**2 / size**2 * sample - sigma * data / size * model_output
        return data**2 / size**2 * sample + sigma * data / size * model_output

    # -- consistency models ------------------------------------------------------------------------
    def get_scalings_for_boundary_condition_discrete(self, timestep: Any) -> tuple[Any, Any]:
        """The (c_skip, c_out) of a consistency model at a training time.

        Source: arXiv 2310.04378, appendix B.
        """
        scaled = timestep * float(self.config["timestep_scaling"])
        return DATA**2 / (scaled**2 + DATA**2), scaled / (scaled**2 + DATA**2) ** 0.5


def initial(process: Process, family: str) -> tuple[Tensor, Tensor, Level]:
    """Times, sigmas and the noisiest level of a scheduler without a list: all training levels.

    Noisiest first and with an end at 0, as diffusers has them; of the DPM family the sigmas rise
    and have no end.
    """
    index = torch.arange(process.train_steps - 1, -1, -1, dtype=torch.float64)
    if isinstance(process, EDM):
        level = before_end(grids.make("karras", process, process.train_steps))
    else:
        level = process.at_index(index)
    flow = process.kind == "flow"
    sigma = level.sigma if flow else level.ratio
    if family == "dpm":
        sigma = sigma.flip(0)
    elif not flow:
        sigma = torch.cat([sigma, double([0.0])])
    whole = process.kind == "vp" and family != "sigma"
    return (
        level.time.to(torch.int64 if whole else torch.float32),
        sigma.float(),
        Level(*(v[:1] for v in level)),
    )
