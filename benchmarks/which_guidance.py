"""Which guidance? Every method on the shipped models, measured, and the page that says so.

    python benchmarks/which_guidance.py [--seeds 2] [--steps 12]

Writes docs/which-guidance.md. A picture of every prompt and seed with DPM++ 2M: whether the judge
(benchmarks/emoji_judge.py) sees what the prompt says, how far the picture is from the converged one
of the same guidance, how saturated it is, and how often the network was called for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import emoji_judge
import timonel as tm
from measure import markdown
from timonel.core.sampler import Sampler
from timonel.files import replacing

PAGE = Path(__file__).resolve().parents[1] / "docs" / "which-guidance.md"
MODELS = {"emoji": "noise prediction, latents", "emoji-flow": "flow"}
PROMPTS = ("red apple", "ghost", "robot", "cat face", "pizza", "rocket", "tulip", "soccer ball")
SAMPLER, FINE, HIGH = "dpmpp_2m", 32, 8.0
#: what is measured, as it is called
METHODS: Mapping[str, tm.Guidance] = {
    "cfg(1)": tm.cfg(1.0),
    "cfg(4)": tm.cfg(4.0),
    "cfg(8)": tm.cfg(HIGH),
    "cfg(8, until=0.4)": tm.cfg(HIGH, until=0.4),
    "cfg(8, rescale=0.7)": tm.cfg(HIGH, rescale=0.7),
    "apg(8)": tm.apg(HIGH),
    'apg(8, formula="diffusers")': tm.apg(HIGH, formula="diffusers"),
    "cfg_zero(8)": tm.cfg_zero(HIGH),
    "tcfg(8)": tm.tcfg(HIGH),
    "mambo(8)": tm.mambo(HIGH),
    "cfg_pp(0.6)": tm.cfg_pp(0.6),
    "cfg_pp(1.0)": tm.cfg_pp(1.0),
}
TEXT = """# Which guidance?

Made by `python benchmarks/which_guidance.py`.

c and u are the conditional and the unconditional output, w the scale, D_c and D_u the denoised \
predictions that they mean. Every method has an interval (`until`, `between`, `unit`), one scale \
per step (`tm.apg([8.0] * 6 + [4.0] * 6)`), `forecast` and, but for CFG++, `rescale`. A guided \
row costs two network evaluations, a row outside the interval, at scale 1 or forecast costs one; \
with CFG++ a row at λ = 1 costs two.

| call | formula | source |
| --- | --- | --- |
| `tm.cfg(w)` | u + w·(c - u) | arXiv 2207.12598 |
| `tm.cfg(w, rescale=0.7)` | 0.7 of it with the standard deviation of c | arXiv 2305.08891, eq. \
15-16 |
| `tm.apg(w)` | D_c + (w - 1)·(d⊥ + eta·d∥); d = D_c - D_u + momentum·(d before), at most \
`norm_threshold` long, split across and along D_c | arXiv 2410.02416, algorithm 1 |
| `tm.cfg_zero(w)` | s·u + w·(c - s·u), s = ⟨c, u⟩/|u|²; on a flow the first step has the \
velocity 0 | arXiv 2503.18886, eq. 8-9, section 4.2 |
| `tm.zero_init(w)` | `cfg`, and on a flow the first step has the velocity 0 | arXiv 2503.18886, \
section 4.2 |
| `tm.tcfg(w)` | u' + w·(c - u'), u' the part of u along the first singular vector of c and u | \
arXiv 2503.18137, algorithm 1 |
| `tm.mambo(w)` | u + w'·(c - u), w' = 1 + (w - 1)·exp(-damping·|c - u|/|u|) | arXiv 2508.03442 |
| `tm.cfg_pp(λ)` | x' = alpha'·(D_u + λ·(D_c - D_u)) + sigma'·(x - alpha·D_u)/sigma | arXiv \
2406.08070, algorithm 2 |

- **CFG++ is in the sampler.** `tm.cfg_pp(0.6)` takes the twin of the sampler that you name: \
{twins}. ComfyUI's names work as they are, `sampler="euler_cfg_pp"`; its cfg is λ, and \
`tm.cfg(1.8)` goes beyond 1 as there. One step is Euler's with w = λ/(1 - e^-h), h the step in \
log(alpha/sigma). So more steps push more, and there is no converged picture to be near to.
- **APG's momentum** is part of the run: after a rewind, in a branch and from a file it is what \
it was. Another method that is assigned on the way begins without it.
- **APG's momentum and threshold** are off unless you name them. The paper has both, for 25 steps \
and more. In 12 steps the momentum alone, `tm.apg(8, momentum=-0.5)`, is worse than none (judged \
as below: 69 %, 0.35 on `emoji-flow`, 94 %, 0.56 on `emoji`), and a threshold helps, \
`tm.apg(8, norm_threshold=5)`: 100 %, 0.64 and 100 %, 0.89.
- **What does not compose**: two methods, and `rescale` with CFG++; no paper says what that would \
be. What costs further evaluations (`tm.pag`, `tm.skip_layers`, …) is added: `tm.cfg(4) + \
tm.pag(3)`.
- **`timonel.compat` and `tm.Scheduler`** alone get what the pipeline has combined, so they can \
do no more than the pipeline does, and refuse the `*_cfg_pp`. Methods need `tm.Helm(pipe)`, or a \
denoiser of yours in `tm.sample`.
- A guidance-distilled model has no unconditional output: methods are refused there.

## Measured

{count} pictures of each in {steps} steps of DPM++ 2M. *Judge*: the share that a classifier of \
emoji, trained on real ones, takes for what the prompt says, and its mean probability of that. \
*Error*: rms difference of pixels (0 to 1) to the same run in {fine} steps, of the first seed. \
*Saturation*: mean difference of the largest and smallest of red, green and blue. *Evaluations*: \
of the network, for one picture.
"""


def pictures(helm: Any, guidance: tm.Guidance, steps: int, seeds: int) -> tuple[Tensor, float]:
    """Pictures (n, 3, 64, 64) of every prompt and seed, and network evaluations for each."""
    sampler = Sampler(SAMPLER, steps=steps).guided_by(guidance)
    made, calls = [], 0.0
    for seed in range(seeds):
        out = helm(
            list(PROMPTS), sampler=sampler, guidance=guidance, seeds=[seed] * len(PROMPTS),
            output_type="pt",
        )  # fmt: skip
        made.append(out.images.float())
        guided = helm.run.guided
        rows = zip(guided.scales, guided.weights, strict=True)
        calls = sum(1 if weights or scale == 1.0 else 2 for scale, weights in rows)
    return torch.cat(made), calls


def row(helm: Any, name: str, steps: int, seeds: int) -> list[str]:
    """A line of the table."""
    guidance = METHODS[name]
    made, calls = pictures(helm, guidance, steps, seeds)
    share, _ = emoji_judge.top1(made, PROMPTS * seeds)
    known = [emoji_judge.load()[1].index(prompt) for prompt in PROMPTS * seeds]
    sure = float(emoji_judge.probabilities(made)[range(len(made)), known].mean())
    error = "-"
    if guidance.method is None or not guidance.method.reads_uncond:
        fine, _ = pictures(helm, guidance, FINE, 1)
        error = f"{float((made[: len(fine)] - fine).square().mean().sqrt()):.3f}"
    saturation = float((made.amax(1) - made.amin(1)).mean())
    return [f"`{name}`", f"{share:.0%}, {sure:.2f}", error, f"{saturation:.3f}", f"{calls:g}"]


def table(model: str, steps: int, seeds: int) -> str:
    """All methods on one model."""
    helm = tm.Helm(model)
    helm.pipe.set_progress_bar_config(disable=True)
    rows = []
    for name in METHODS:
        rows.append(row(helm, name, steps, seeds))
        print(model, *rows[-1], flush=True)
    return markdown(["guidance", "judge", "error", "saturation", "evaluations"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="measure guidance methods on the shipped models")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each prompt")
    parser.add_argument("--steps", type=int, default=12)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    twins = ", ".join(f"`{name}`" for name in tm.core.solvers.TWINS)
    parts = [TEXT.format(
        twins=twins, count=len(PROMPTS) * chosen.seeds, steps=chosen.steps, fine=FINE
    )]  # fmt: skip
    for model, kind in MODELS.items():
        parts.append(f"\n### `{model}` ({kind})\n\n{table(model, chosen.steps, chosen.seeds)}\n")
    with replacing(PAGE) as temporary:
        temporary.write_text("".join(parts), "utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
