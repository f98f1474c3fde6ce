"""Parity with diffusers: every scheduler that serves image or video latents, over random
configurations.

The same network, start, levels and noise give the same network inputs and the same result.
`parity.py` runs both sides, `parity_cases.py` draws the configurations,
`test_parity_differences.py` holds what differs.
"""

from __future__ import annotations

import diffusers
import pytest
import torch

from support import parity_k
from support.parity import TOLERANCE, Case, grid, theirs
from support.parity_cases import PEERS, cases, measured
from timonel.core.grids import custom_times
from timonel.core.process import from_config

HERE = [name for name in PEERS if hasattr(diffusers, name)]


@pytest.mark.parametrize("name", HERE)
def test_every_configuration_computes_the_same(name: str) -> None:
    wrong = [
        f"{found:.2e}: {case}"
        for case, found in measured(name)
        if not found <= TOLERANCE[case.double]
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_at_least_500_configurations_are_compared() -> None:
    ours = sum(len(cases(name)) for name in PEERS)
    assert ours + sum(len(parity_k.cases(name)) for name in parity_k.PEERS) >= 500


@pytest.mark.parametrize("double", [True, False])
def test_both_float_widths_are_drawn(double: bool) -> None:
    drawn = [case for name in PEERS for case in cases(name) if case.double is double]
    assert len(drawn) > 100


def _at_training_times(case: Case) -> bool:
    plain = not any(k.startswith(("use_", "rescale", "snr")) and v for k, v in case.config.items())
    return case.space in ("abar", "dpm") and plain and not case.idle and case.solver != "pndm"


@pytest.mark.parametrize("name", [n for n in HERE if any(_at_training_times(c) for c in cases(n))])
def test_the_process_has_the_schedulers_levels_at_its_times(name: str) -> None:
    """What the harness takes from the scheduler is what timonel computes from the config and the
    times.
    """
    for case in filter(_at_training_times, cases(name)):
        scheduler = theirs(case)[0]
        wanted = grid(case, scheduler)
        times = sorted({int(t) for t in scheduler.timesteps}, reverse=True)
        config = {**scheduler.config, "_class_name": name}
        if name == "UnCLIPScheduler":  # it has no other schedule, and no key for it
            config["beta_schedule"] = "squaredcos_cap_v2"
        found = custom_times(from_config(config), times)
        n = len(times)
        assert torch.allclose(found.alpha[:n], wanted.alpha[:n], rtol=2e-5, atol=1e-6), str(case)
        assert torch.allclose(found.sigma[:n], wanted.sigma[:n], rtol=2e-5, atol=1e-6), str(case)
