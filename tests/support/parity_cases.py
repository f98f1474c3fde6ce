"""Which configurations of every diffusers scheduler are run, and which classes are left out and
why.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

from support import parity_draw as draw
from support.parity import Case, error


@dataclass(frozen=True)
class Peer:
    """One scheduler: how a configuration is drawn, and how many are."""

    draw: Callable[[random.Random], Case]
    runs: int = 16


PEERS: dict[str, tuple[Peer, ...]] = {
    "DDIMScheduler": (Peer(draw.ddim("DDIMScheduler"), 20),),
    "DDIMParallelScheduler": (Peer(draw.ddim("DDIMParallelScheduler"), 12),),
    "DDPMScheduler": (Peer(draw.ddpm("DDPMScheduler"), 20),),
    "DDPMParallelScheduler": (Peer(draw.ddpm("DDPMParallelScheduler"), 12),),
    "PNDMScheduler": (Peer(draw.pndm(True, "plms"), 12), Peer(draw.pndm(False, "pndm"), 8)),
    "LMSDiscreteScheduler": (Peer(draw.lms, 20),),
    "EulerDiscreteScheduler": (
        Peer(draw.euler, 20),
        Peer(draw.euler_zero_snr, 6),
        Peer(draw.svd, 6),
    ),
    "EulerAncestralDiscreteScheduler": (Peer(draw.euler_ancestral),),
    "HeunDiscreteScheduler": (
        Peer(draw.two_calls("HeunDiscreteScheduler", "heun", "epsilon v sample")),
    ),
    "KDPM2DiscreteScheduler": (
        Peer(draw.two_calls("KDPM2DiscreteScheduler", "dpm2", "epsilon v")),
    ),
    "KDPM2AncestralDiscreteScheduler": (
        Peer(draw.two_calls("KDPM2AncestralDiscreteScheduler", "dpm2_ancestral", "epsilon v", 8)),
    ),
    "DPMSolverMultistepScheduler": (Peer(draw.dpm_multistep, 48),),
    "DPMSolverSinglestepScheduler": (Peer(draw.dpm_singlestep, 24),),
    "DPMSolverSDEScheduler": (
        Peer(draw.two_calls("DPMSolverSDEScheduler", "dpmpp_sde", "epsilon v")),
    ),
    "DEISMultistepScheduler": (Peer(draw.deis, 20),),
    "UniPCMultistepScheduler": (Peer(draw.unipc, 36),),
    "SASolverScheduler": (Peer(draw.sa_solver, 24),),
    "IPNDMScheduler": (Peer(draw.ipndm, 12),),
    "LCMScheduler": (Peer(draw.lcm),),
    "TCDScheduler": (Peer(draw.tcd),),
    "EDMEulerScheduler": (Peer(draw.edm("EDMEulerScheduler")),),
    "EDMDPMSolverMultistepScheduler": (Peer(draw.edm("EDMDPMSolverMultistepScheduler", 3), 20),),
    "CosineDPMSolverMultistepScheduler": (Peer(draw.edm("CosineDPMSolverMultistepScheduler", 2)),),
    "FlowMatchEulerDiscreteScheduler": (Peer(draw.flow_euler, 24),),
    "FlowMatchHeunDiscreteScheduler": (
        Peer(draw.flow("FlowMatchHeunDiscreteScheduler", "heun", blind=True)),
    ),
    "FlowMatchLCMScheduler": (Peer(draw.flow("FlowMatchLCMScheduler", "lcm"), 12),),
    "FlowMapEulerDiscreteScheduler": (
        Peer(draw.flow("FlowMapEulerDiscreteScheduler", "euler"), 10),
    ),
    "MiniMaxH3Scheduler": (Peer(draw.minimax, 10),),
    "LTXEulerAncestralRFScheduler": (Peer(draw.ltx, 14),),
    "CogVideoXDDIMScheduler": (Peer(draw.cogvideox_ddim),),
    "CogVideoXDPMScheduler": (Peer(draw.cogvideox_dpm),),
    "SCMScheduler": (Peer(draw.scm, 12),),
    "CMStochasticIterativeScheduler": (Peer(draw.consistency, 12),),
    "DDPMWuerstchenScheduler": (Peer(draw.wuerstchen, 12),),
    "UnCLIPScheduler": (Peer(draw.unclip, 12),),
}


OUT_OF_SCOPE: dict[str, str] = {
    **dict.fromkeys(
        ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"),
        "inversion: from a picture to noise; `timonel.compat` has it, step by step the same",
    ),
    "RePaintScheduler": (
        "inpainting: mixes a masked picture in at every step and jumps back in time"
    ),
    "ConsistencyDecoderScheduler": (
        "makes pixels from latents, as a part of a decoder; does not sample latents"
    ),
    "ScoreSdeVeScheduler": (
        "pixels; takes its Langevin step size from the norm of the prediction, so it is no table"
    ),
    "ScoreSdeVpScheduler": "pixels; deprecated in diffusers",
    "KarrasVeScheduler": "pixels; deprecated in diffusers. The algorithm is `edm`",
    "PiflowScheduler": (
        "the output is a policy of many predictions, which is integrated without the network"
    ),
    "HeliosScheduler": "a pyramid: changes the resolution of the latents between stages",
    "HeliosDMDScheduler": "a pyramid: changes the resolution of the latents between stages",
    "AmusedScheduler": "tokens: unmasks discrete codes",
    "VQDiffusionScheduler": "tokens: discrete codes",
    "BlockRefinementScheduler": "tokens: text",
    "EntropyBoundScheduler": "tokens: text",
    "DiscreteDDIMScheduler": "tokens: discrete codes",
    "RFD4ProteinaScheduler": "proteins: coordinates of atoms",
}


@functools.cache
def cases(name: str) -> tuple[Case, ...]:
    """The configurations of a scheduler, the same every time."""
    return tuple(
        peer.draw(random.Random(f"{name} {i} {j}"))
        for i, peer in enumerate(PEERS[name])
        for j in range(peer.runs)
    )


@functools.cache
def measured(name: str) -> tuple[tuple[Case, float], ...]:
    """Every configuration of a scheduler with its error."""
    return tuple((case, error(case)) for case in cases(name))
