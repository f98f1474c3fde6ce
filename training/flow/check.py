"""Check an exported folder: it loads, is conditioned as in training, and attention was counted
right.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline

from training.emoji.text import encode, token_ids
from training.flow.network import CountedAttention, condition, velocity
from training.flow.shared import load_pipeline

MOST = 12e6  # bytes


def check_conditioning(pipeline: StableDiffusion3Pipeline) -> None:
    """The pipeline's prompt and empty prompt with one zero token equal those of training."""
    texts = ["red apple", "cat face, noto style", "zyzzyva quux"]
    with torch.no_grad():
        found = pipeline.encode_prompt(texts, None, None, max_sequence_length=1)
        for (prompt, pooled), batch in (
            ((found[0], found[2]), texts),
            ((found[1], found[3]), [""] * 3),
        ):
            ours = condition(*encode(pipeline.text_encoder, token_ids(pipeline.tokenizer, batch)))
            assert torch.equal(prompt, ours[0])
            assert torch.equal(pooled, ours[1])


def check_counting(pipeline: StableDiffusion3Pipeline) -> None:
    """One zero token that counts as many gives what the pipeline's own attention gives for many."""
    stock = pipeline.transformer.attn_processors
    generator = torch.Generator().manual_seed(0)
    noisy, time = torch.randn(2, 4, 16, 16, generator=generator), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        for zeros in (0, 1, 7, 256):
            prompt, _, pooled, _ = pipeline.encode_prompt(
                ["red apple", "sun"], None, None, max_sequence_length=zeros
            )
            pipeline.transformer.set_attn_processor(dict(stock))
            many = pipeline.transformer(noisy, prompt, pooled, 1000 * time, return_dict=False)[0]
            prompt, _, pooled, _ = pipeline.encode_prompt(
                ["red apple", "sun"], None, None, max_sequence_length=1
            )
            pipeline.transformer.set_attn_processor(CountedAttention())
            counted = velocity(
                pipeline.transformer, noisy, time, prompt, pooled, torch.full((2,), float(zeros))
            )
            error = float((many - counted).abs().max() / many.abs().max())
            assert error < 1e-4, (zeros, error)
    pipeline.transformer.set_attn_processor(dict(stock))


def check_picture(pipeline: StableDiffusion3Pipeline, again: StableDiffusion3Pipeline) -> None:
    """The stock call makes a finite picture, and a second loading the same one."""

    def picture(pipe: StableDiffusion3Pipeline) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(7)
        return pipe(
            "red apple", num_inference_steps=4, generator=generator, output_type="pt"
        ).images

    first = picture(pipeline)
    assert first.shape == (1, 3, 64, 64)
    assert bool(first.isfinite().all())
    assert torch.equal(first, picture(again))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="the shipped emoji model")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipeline, again = (load_pipeline(args.model, args.base) for _ in range(2))
    assert pipeline.text_encoder is pipeline.text_encoder_2
    dtypes = {
        p.dtype
        for m in (pipeline.transformer, pipeline.vae, pipeline.text_encoder)
        for p in m.parameters()
    }
    assert dtypes == {torch.float32}, dtypes
    check_conditioning(pipeline)
    check_counting(pipeline)
    check_picture(pipeline, again)
    size = sum(p.stat().st_size for p in args.model.rglob("*") if p.is_file())
    assert size <= MOST, size
    print(f"{args.model.name}: all checks passed, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
