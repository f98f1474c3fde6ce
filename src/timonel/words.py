"""The names of diffusers and torch for predictions and dtypes. Imports nothing heavy."""

from __future__ import annotations

#: what a network predicts
PREDICTIONS = {
    "v_prediction": "v", "flow_prediction": "flow", "eps": "epsilon",
    "epsilon_prediction": "epsilon", "x0": "sample",
    "denoised": "sample", "sample_prediction": "sample",
}  # fmt: skip
#: the precision of a model
DTYPES = {
    "float32": "fp32", "float": "fp32", "full": "fp32", "float16": "fp16", "half": "fp16",
    "bfloat16": "bf16",
}  # fmt: skip


def prediction(name: object) -> str:
    """timonel's name of a prediction; an unknown one is returned as it is."""
    word = str(name).strip().lower().replace("-", "_")
    return PREDICTIONS.get(word, word)


def dtype(name: object) -> str:
    """timonel's name of a dtype, e.g. "fp16" for "torch.float16"; an unknown one as it is."""
    word = str(name).strip().lower().removeprefix("torch.")
    return DTYPES.get(word, word)
