"""Pipeline classes that are not built, and why. A star at the end of a name stands for the rest of
it.
"""

from __future__ import annotations

_PARTS = "calls two other pipelines, which are built; it has no loop of its own"
_LOOPLESS = "has no loop over a scheduler"
_TOKENS = "chooses discrete tokens; its loop is that of a class that is built"
_TEXT = "generates text, not latents"

ABSENT: dict[str, str] = {
    "KandinskyCombinedPipeline": _PARTS,
    "KandinskyImg2ImgCombinedPipeline": _PARTS,
    "KandinskyInpaintCombinedPipeline": _PARTS,
    "KandinskyV22Img2ImgCombinedPipeline": _PARTS,
    "KandinskyV22InpaintCombinedPipeline": _PARTS,
    "WuerstchenCombinedPipeline": _PARTS,
    "VersatileDiffusionPipeline": _PARTS,
    "FluxPriorReduxPipeline": _LOOPLESS,
    "LTXLatentUpsamplePipeline": _LOOPLESS,
    "LTX2LatentUpsamplePipeline": _LOOPLESS,
    "LTX2VideoDiffusionDecodePipeline": _LOOPLESS,
    "StableDiffusionParadigmsPipeline": "steps many times at once, with a scheduler that can",
    "Onnx*": "needs the package onnxruntime",
    "StableDiffusionOnnxPipeline": "needs the package onnxruntime",
    "OmniGenPipeline": "needs the package torchvision",
    "SpectrogramDiffusionPipeline": "needs the package note_seq",
    "AudioDiffusionPipeline": "needs the package librosa",
    "AmusedImg2ImgPipeline": _TOKENS,
    "AmusedInpaintPipeline": _TOKENS,
    "VQDiffusionPipeline": "chooses discrete tokens",
    "DiffusionGemmaPipeline": _TEXT,
    "LLaDA2Pipeline": _TEXT,
    "UnCLIP*": "has no `scheduler`: two or three of other names, one for each of its networks",
    "LEditsPPPipelineStableDiffusionXL": (
        "its loop is that of LEditsPPPipelineStableDiffusion, which is built"
    ),
    "HeliosPyramidPipeline": (
        "grows its picture in stages that start where its own scheduler's list says"
    ),
    "RFD4ProteinaPipeline": "generates proteins, with two schedulers",
    "EasyAnimateControlPipeline": (
        "raises before its loop: its `encode_prompt` takes no text_encoder_index"
    ),
}
