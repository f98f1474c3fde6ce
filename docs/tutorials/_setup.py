# %% [es]
# ## Preparativos
#
# En tu máquina o en Colab, con la carpeta del proyecto delante, quita la almohadilla de la primera
# línea (Python 3.10 o posterior).
# %% [en]
# ## Getting ready
#
# On your machine or in Colab, from the project's folder, remove the hash of the first line (Python
# 3.10 or newer).
# %%
# %pip install .
# %%
import torch
from PIL import Image, ImageDraw

import timonel as tm

LANGUAGE = "en"  # of what the cells print: "es" or "en"


def say(es: str, en: str) -> None:
    print(es if LANGUAGE == "es" else en)


def verdict(es: str, en: str, *measured: bool) -> None:
    """Whether a claim holds here: all measurements agree ✔, none does ✘, some do ◐."""
    sign = "✔" if all(measured) else "◐" if any(measured) else "✘"
    words = {
        "✔": ("se cumple", "holds"),
        "◐": ("se cumple a medias", "holds in part"),
        "✘": ("no se cumple", "does not hold"),
    }
    say(f"{sign} Aquí {words[sign][0]}: {es}.", f"{sign} Here it {words[sign][1]}: {en}.")


def strip(pictures, labels, size=112, across=6):
    """Pictures in rows, a label under each."""
    down = -(-len(pictures) // across)
    sheet = Image.new("RGB", (min(across, len(pictures)) * (size + 8), down * (size + 22)), "white")
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = i % across * (size + 8) + 4, i // across * (size + 22)
        way = Image.Resampling.NEAREST if picture.width < 64 else Image.Resampling.BICUBIC
        sheet.paste(picture.convert("RGB").resize((size, size), way), (x, y))
        ImageDraw.Draw(sheet).text((x + size // 2, y + size + 10), str(label), "black", anchor="mm")
    return sheet


def watched(pipe):
    """Two lists that grow with every call of the network: the time it was told, and how many
    samples it saw.
    """
    times, samples = [], []
    pipe.unet.time_proj.register_forward_pre_hook(
        lambda module, args: times.append(float(args[0][0]))
    )
    pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: samples.append(len(args[0])))
    return times, samples


def attempt(job):
    """What `job` returns, or the error it ends with, as text."""
    try:
        return job()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:240]}"


helm = tm.Helm("emoji")  # a shipped model, a folder, a hub name or a diffusers pipeline
pipe = helm.pipe  # that pipeline, as diffusers knows it
pipe.set_progress_bar_config(disable=True)
times, samples = watched(pipe)
