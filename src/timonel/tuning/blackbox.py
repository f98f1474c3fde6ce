"""Pipelines whose network cannot be called by itself: every sampler is a whole call of the helm."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.fitted.provenance import ProcessData, Provenance
from ..core.fitted.sampler_file import Fitted
from ..core.guidance import Guidance
from ..core.prediction import from_config as prediction_of
from ..core.process import from_config as process_of
from ..core.sampler import Sampler
from ..core.table import Table
from ..engine.network import Answer, Query
from ..errors import FittedElsewhere, ModelError
from ..pipelines.helm import Helm
from .model import Model


class Whole(Model):
    """A pipeline as a black box.

    Args:
        helm: Whose pipeline.
        inputs: The pipeline's arguments for each sample.
        seeds: One for each.
        guidance: As the sampler will be used.
    """

    stepwise = False

    def __init__(
        self,
        helm: Helm,
        inputs: Sequence[Mapping[str, Any]],
        seeds: Sequence[int],
        guidance: Guidance | None,
    ) -> None:
        super().__init__()
        self.helm, self.inputs, self.seeds, self.guidance = helm, inputs, seeds, guidance
        config = helm.pipe.scheduler.config
        self.process, self.prediction = process_of(config), prediction_of(config)
        self.count = len(seeds)
        self.more = {"output_type": "latent"} if "output_type" in helm.parameters else {}

    def start(self, samples: Sequence[int]) -> Tensor:
        """Refused, as `answers`."""
        raise ModelError("the pipeline draws its own noise")

    def answers(self, queries: Sequence[Query]) -> list[Answer]:
        """Refused: only `run` works."""
        raise ModelError("the network of this pipeline cannot be called by itself")

    def run(self, table: Table, samples: Sequence[int], always: bool = False) -> Tensor:
        """See `Model.run`: one call of the helm for each sample."""
        guidance = self.always() if always else self.guidance
        provenance = Provenance(
            model="fit", process=ProcessData.of(self.process, table), prediction=self.prediction,
            guidance=None, dtype="", prompts=[], seeds=[], held_out_prompts=[], held_out_seeds=[],
            start="", method="", fitting={}, held_out={}, seconds=0, calls=0,
        )  # fmt: skip
        sampler, results = Sampler(fitted=Fitted("fit", table, provenance)), []
        for sample in samples:
            inputs = {**self.more, **self.inputs[sample]}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FittedElsewhere)  # nobody's file
                self.helm(sampler=sampler, seeds=[self.seeds[sample]], guidance=guidance, **inputs)
            run = self.helm.run
            assert run is not None
            self.evaluations += run.advances
            results.append(run.result)
        return torch.cat(results)
