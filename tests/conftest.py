"""One quiet thread, and hypothesis without a clock: the machine that runs the tests may be busy."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile("timonel", deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
settings.load_profile("timonel")
