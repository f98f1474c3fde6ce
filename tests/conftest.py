"""One quiet thread, and hypothesis without a clock: the machine that runs the tests may be busy.

A commit passes or fails whoever runs it: the laws draw the same cases every time. `explore` draws new ones.
"""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
common = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
settings.register_profile("same", common, derandomize=True)
settings.register_profile("explore", common)
settings.load_profile("same")
