"""One quiet thread, rare collections, and hypothesis without a clock: the machine that runs the
tests may be busy.

A commit passes or fails whoever runs it: the laws draw the same cases every time. `explore` draws
new ones.
"""

from __future__ import annotations

import gc

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
gc.set_threshold(
    20_000, 20, 20
)  # a collection walks the millions of objects of torch, diffusers and transformers
common = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
settings.register_profile("same", common, derandomize=True)
settings.register_profile("explore", common)
settings.load_profile("same")
