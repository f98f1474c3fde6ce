"""What the scripts that train a denoiser share: the state of a training, one step of it, and the
loop around both.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn

from training.emoji.common import Average, Clock, load_checkpoint, log, save_atomic

SAVED = 180  # seconds between two checkpoints


def joined() -> tuple[int, int]:
    """Number of processes of a `torchrun`, which this one joins, and its place among them; 1 and 0
    without one.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if world > 1:
        distributed.init_process_group("gloo")
    return world, rank


def agree(weights: list[nn.Parameter], rate: float, done: bool) -> tuple[float, bool]:
    """Mean gradients over the processes of a `torchrun`; one rate and one end for all of them."""
    if not distributed.is_initialized():
        return rate, done
    weights = [w for w in weights if w.grad is not None]
    flat = torch.cat([w.grad.flatten() for w in weights] + [torch.tensor([rate, float(done)])])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    start = 0
    for w in weights:
        w.grad.copy_(flat[start : start + w.numel()].view_as(w))
        start += w.numel()
    return float(flat[-2]), float(flat[-1]) > 0


@dataclass
class Training:
    """Everything that a checkpoint holds. A model's own training says what its `loss` is, and what
    it is `called`.
    """

    called: ClassVar[str]
    logged: ClassVar[int] = 25  # steps between two lines of the log
    network: nn.Module
    average: Average
    both: list[torch.optim.Optimizer]
    clock: Clock
    step: int = 0
    seen: int = 0

    def loss(self, batches: Any, size: int) -> Tensor:
        """The mean loss of a batch of this size."""
        raise NotImplementedError

    def told(self, batches: Any) -> str:
        """How many samples were seen, and whatever else the log is to say."""
        return f"pictures {self.seen}"

    def checked(self) -> str:
        """What a look at the averaged network says whenever it is saved; nothing by default."""
        return ""

    def load(self, path: Path) -> None:
        state = load_checkpoint(path)
        self.network.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        for optimizer, kept in zip(self.both, state.get("optimizers", []), strict=False):
            optimizer.load_state_dict(kept)
        self.step, self.seen = state["step"], state["seen"]
        self.average.steps, self.clock.before = self.step, state["seconds"]

    def save(self, path: Path) -> None:
        state = {
            "model": self.network.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.both],
            "step": self.step,
            "seen": self.seen,
            "seconds": self.clock.seconds,
        }
        save_atomic(state, path)

    def advance(self, batches: Any, args: argparse.Namespace, world: int) -> tuple[float, bool]:
        """One step over all processes. Returns the loss and whether the time is up."""
        loss = self.loss(batches, args.batch // world)
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        weights = list(self.network.parameters())
        rate, done = agree(weights, args.rate * self.clock.rate(flat=args.flat), self.clock.done)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in self.both:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.step, self.seen = self.step + 1, self.seen + args.batch
        return loss.item(), done

    def run(self, batches: Any, args: argparse.Namespace, world: int, rank: int) -> None:
        """Train until the time is up. The first process keeps the average, and log and checkpoints
        in `args.work`.
        """
        path, log_path = args.work / f"{self.called}.safetensors", args.work / f"{self.called}.log"
        if rank == 0:
            count = sum(w.numel() for w in self.network.parameters()) / 1e6
            log(log_path, f"{self.called} start step {self.step} parameters {count:.2f} M")
        saved, running, done = self.clock.seconds, 0.0, False
        while not done:
            loss, done = self.advance(batches, args, world)
            running = loss if running == 0 else 0.98 * running + 0.02 * loss
            if rank != 0:
                continue
            self.average.update(self.network)
            if self.step % self.logged == 0:
                rate = self.both[0].param_groups[0]["lr"]
                spent = f"seconds {self.clock.seconds:.0f} loss {running:.4f} rate {rate:.2e}"
                log(log_path, f"{self.called} step {self.step} {self.told(batches)} {spent}")
            if self.clock.seconds - saved > SAVED or done:
                saved = self.clock.seconds
                self.save(path)
                if said := self.checked():
                    log(log_path, f"{self.called} step {self.step} {said}")
