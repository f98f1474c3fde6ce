"""Check an exported folder: it loads as SDXL does, conditions as in training, survives a save."""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline

from training.emoji.data import load
from training.emoji.text import encode, token_ids


def check_conditioning(pipeline: StableDiffusionXLPipeline) -> None:
    """Prompt, zeros for no prompt and time ids equal those of training."""
    texts = ["red apple", "cat face, noto style", "zyzzyva quux"]
    with torch.no_grad():
        ids = token_ids(pipeline.tokenizer_2, texts)
        ours = encode(pipeline.text_encoder_2, ids)
        prompt, negative, pooled, negative_pooled = pipeline.encode_prompt(texts)
    assert torch.equal(prompt, ours[0])
    assert torch.equal(pooled, ours[1])
    assert not negative.any()
    assert not negative_pooled.any()
    height = pipeline.default_sample_size * pipeline.vae_scale_factor
    assert height == 64, height
    ids = pipeline._get_add_time_ids((64, 64), (0, 0), (64, 64), torch.float32, 192)
    assert ids.tolist() == [[64.0, 64, 0, 0, 64, 64]], ids


def check_words(pipeline: StableDiffusionXLPipeline, work: Path) -> None:
    """Every word of the captions is one token; unknown words still split into known pieces."""
    data = load(work)
    words = {w for name in data.names for w in re.findall(r"[a-z]+", name)}
    tokenizer = pipeline.tokenizer_2
    longer = [w for w in sorted(words) if len(tokenizer(w).input_ids) != 3]
    assert not longer, longer
    assert len(tokenizer("zyzzyva").input_ids) > 3
    known = tokenizer("red apple").input_ids
    assert known == tokenizer("Red  APPLE").input_ids
    assert known[-1] == tokenizer.eos_token_id


def check_round_trip(pipeline: StableDiffusionXLPipeline) -> None:
    """Saved and loaded again the pipeline makes the same picture, and it is finite."""

    def picture(pipe: StableDiffusionXLPipeline) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(7)
        return pipe(
            "red apple", num_inference_steps=4, generator=generator, output_type="pt"
        ).images

    first = picture(pipeline)
    assert first.shape == (1, 3, 64, 64)
    assert bool(first.isfinite().all())
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_pretrained(folder)
        second = picture(StableDiffusionXLPipeline.from_pretrained(folder))
    assert torch.equal(first, second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    args = parser.parse_args()
    pipeline = StableDiffusionXLPipeline.from_pretrained(args.model)
    dtypes = {
        p.dtype
        for m in (pipeline.unet, pipeline.vae, pipeline.text_encoder_2)
        for p in m.parameters()
    }
    assert dtypes == {torch.float32}, dtypes
    check_conditioning(pipeline)
    check_words(pipeline, args.work)
    check_round_trip(pipeline)
    size = sum(p.stat().st_size for p in args.model.rglob("*") if p.is_file())
    assert size <= 25e6, size
    print(f"{args.model.name}: all checks passed, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
