"""k_diffusion.sampling without what its package imports for training (torchvision, and more)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings


def k_diffusion_sampling() -> types.ModuleType | None:
    """The module, or None where the package is not installed."""
    spec = importlib.util.find_spec("k_diffusion") if "k_diffusion" not in sys.modules else None
    if spec is None and "k_diffusion" not in sys.modules:
        return None
    if "k_diffusion.sampling" in sys.modules:
        return sys.modules["k_diffusion.sampling"]
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    missing = (
        []
        if importlib.util.find_spec("torchvision")
        else [n for n in names if n not in sys.modules]
    )
    for name in missing:
        sys.modules[name] = types.ModuleType(name)
    if missing:
        sys.modules[names[0]].transforms = sys.modules[names[1]]
        sys.modules[names[1]].functional = sys.modules[names[2]]
    sys.modules["k_diffusion"] = package
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("k_diffusion.sampling")
    finally:
        for name in missing:  # diffusers and transformers ask whether torchvision is there
            del sys.modules[name]
