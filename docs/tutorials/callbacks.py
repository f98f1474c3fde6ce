# %% [es]
# # Al timón: mira, para y cambia lo que hace un modelo de difusión
#
# Un modelo de difusión parte de ruido puro y lo limpia en unos cuantos pasos. Aquí vas a meter mano
# en medio de ese camino: ver cada paso, parar cuando quieras, retocar la imagen a medio hacer y
# apagar la guía cuando deja de compensar. Todo corre en la CPU, en unos minutos, con el modelo
# pequeño de emojis que viene con timonel. Al final, lo mismo con vídeo.
#
# Sobre esto circulan muchos consejos. Algunos son ciertos, otros a medias y otros no. Aquí no hace
# falta creerse ninguno: cada uno se mide en una celda, y la frase que empieza por ✔, ◐ o ✘ sale de
# esa medida. Con otro modelo, la frase puede ser otra.
# %% [en]
# # At the helm: watch, stop and change what a diffusion model does
#
# A diffusion model begins with pure noise and cleans it in a number of steps. Here you step in half
# way: see every step, stop when you like, retouch the unfinished picture, and switch guidance off
# once it no longer pays. All of it runs on a CPU in a few minutes, with the small emoji model that
# ships with timonel. At the end, the same with video.
#
# There is plenty of advice about this. Some of it is true, some half true, some not. No need to
# take any of it on trust: each piece is measured in a cell, and the sentence that begins with ✔, ◐
# or ✘ comes from that measurement. With another model it may say something else.
# %% [include _setup]
# %% [parameters]
STEPS, REPEATS, CUTS = 20, 5, (0.8, 0.6, 0.4, 0.2, 0.0)
PROMPTS = ["red apple", "ghost", "cat face"]
# %% [es]
# ## El camino, paso a paso
#
# Dentro de una llamada hay un bucle: la red mira la imagen ruidosa y predice cómo sería limpia; el
# sampler da un paso hacia allí; y otra vez. Un *hook* es cualquier función que recibe el recorrido
# (`run`) al terminar cada paso. Todo está a la vista: `run.step` (pasos dados), `run.level` (cuánto
# ruido queda), `run.latents` (la muestra, con su ruido) y `run.denoised` (lo que el modelo cree que
# hay debajo).
#
# `tm.trace()` es un hook que apunta esos números. `ratio` es sigma/alpha, cuánto ruido hay por cada
# parte de imagen: cae a cada paso. `cosine` dice cuánto se parece cada predicción a la anterior:
# pronto deja de cambiar.
# %% [en]
# ## The journey, step by step
#
# Inside a call there is a loop: the network looks at the noisy picture and predicts what it would
# be like clean; the sampler takes a step in that direction; and again. A *hook* is any function
# that is given the run after every step. Everything is in sight: `run.step` (steps made),
# `run.level` (how much noise is left), `run.latents` (the sample, noise and all) and `run.denoised`
# (what the model believes is underneath).
#
# `tm.trace()` is a hook that writes those numbers down. `ratio` is sigma/alpha, how much noise
# there is for each part of picture: it falls with every step. `cosine` says how much a prediction
# resembles the one before: soon it hardly changes.
# %%
numbers = tm.trace()
apple = helm(
    "red apple", sampler="dpmpp_2m/karras", steps=12, guidance=4.0, seeds=[7], hooks=[numbers]
).images[0]
print(numbers.table())
display(apple.resize((192, 192)))
assert len(numbers.rows) == len(times) == 12


# %% [es]
# ## Parar antes
#
# La receta habitual en diffusers es poner `pipeline._interrupt = True` cuando `i == 10`. Con
# timonel es `stop_when`, o `run.stop()` dentro de cualquier hook. Contemos cuántas veces trabaja la
# red y miremos qué imagen queda.
# %% [en]
# ## Stopping early
#
# The usual recipe in diffusers sets `pipeline._interrupt = True` when `i == 10`. With timonel it is
# `stop_when`, or `run.stop()` inside any hook. Let us count how often the network works, and look
# at the picture that is left.
# %%
def interrupt(pipeline, i, t, callback_kwargs):
    if i == 10:
        pipeline._interrupt = True
    return callback_kwargs


def psnr(a, b):
    """How alike two pictures are, in dB: more is more alike, above 30 one has to look twice."""
    one, two = (
        torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).float() / 255
        for picture in (a, b)
    )
    return float(-10 * torch.log10((one - two).square().mean()))


def seeded():
    return torch.Generator().manual_seed(7)


whole = helm("red apple", sampler="euler/leading", steps=STEPS, guidance=4.0, seeds=[7]).images[0]
times.clear()
noisy = pipe(
    "red apple",
    num_inference_steps=STEPS,
    guidance_scale=4.0,
    generator=seeded(),
    callback_on_step_end=interrupt,
).images[0]
theirs = len(times)

times.clear()
ten = tm.stop_when(lambda run: run.step == 10)
clean = helm(
    "red apple", sampler="euler/leading", steps=STEPS, guidance=4.0, seeds=[7], hooks=[ten]
).images[0]
ours = len(times)

display(strip([noisy, clean, whole], [f"_interrupt: {theirs}", f"stop_when: {ours}", f"{STEPS}"]))
verdict(
    f"«para en el paso 10»: con `i == 10` la red trabaja {theirs} veces, porque `i` cuenta desde 0 y ese paso ya "
    "está dado; con "
    f"`run.step == 10` trabaja {ours}",
    f"“stops at step 10”: with `i == 10` the network works {theirs} times, since `i` counts from 0 and that step is "
    "already made; with "
    f"`run.step == 10` it works {ours}",
    theirs == 10,
)
say(
    f"diffusers decodifica la muestra con su ruido ({psnr(noisy, whole):.1f} dB frente a la imagen entera); "
    "timonel, lo "
    f"que el modelo ya cree que hay debajo ({psnr(clean, whole):.1f} dB).",
    f"diffusers decodes the sample with its noise ({psnr(noisy, whole):.1f} dB against the finished picture); timonel, "
    f"what the model already believes is underneath ({psnr(clean, whole):.1f} dB).",
)
assert (theirs, ours, helm.run.status) == (11, 10, "stopped")
assert psnr(clean, whole) > psnr(noisy, whole)
# %% [es]
# ## Ver cómo nace la imagen
#
# `tm.preview("carpeta")` guarda una imagen por paso y `tm.collect()` las junta en una hoja o en una
# animación. Se ve la predicción limpia, no el ruido, y decodificarla cuesta casi nada: en lugar del
# decodificador se usa un mapa lineal de los canales latentes a rojo, verde y azul, ajustado a
# *este* modelo. Son colores aproximados: con cuatro canales no da para más, y con `decode=True`
# tienes los exactos.
# %% [en]
# ## Watching the picture appear
#
# `tm.preview("folder")` saves a picture of every step and `tm.collect()` puts them on a sheet or
# into an animation. What you see is the clean prediction, not the noise, and it costs next to
# nothing: instead of the decoder, a linear map from latent channels to red, green and blue, fitted
# to *this* model. The colours are approximate: four channels will not give more, and `decode=True`
# has the exact ones.
# %%
from pathlib import Path

story = tm.collect(size=96)
apple = helm(
    "red apple", steps=12, guidance=4.0, seeds=[7], hooks=[story, tm.preview("steps")]
).images[0]
story.animation("apple.gif")
with Image.open(story.contact_sheet("apple.png", columns=6)) as sheet:
    display(sheet.copy())
print(*sorted(path.name for path in Path("steps").iterdir()))
assert len(story.frames) == len(list(Path("steps").glob("*.png"))) == 12
# %% [es]
# Hay una función muy copiada, `latents_to_rgb`, con doce factores fijos. Son los del autoencoder de
# SDXL (Timothy Alexis Vass, *Explaining the SDXL latent space*). Con los latentes de otro modelo,
# los colores no significan nada. Comparemos los dos mapas con lo que dice el decodificador,
# reducido al tamaño de los latentes.
# %% [en]
# A much copied function, `latents_to_rgb`, has twelve fixed factors. They belong to SDXL's
# autoencoder (Timothy Alexis Vass, *Explaining the SDXL latent space*). On another model's latents
# the colours mean nothing. Let us compare both maps with what the decoder says, reduced to the size
# of the latents.
# %%
from timonel.hooks.rgb import to_images

FACTORS = torch.tensor([[60.0, -60, 25, -70], [60, -5, 15, -50], [60, 10, -5, -35]])
borrowed = tm.LatentRGB(FACTORS / 255, torch.tensor([150.0, 140, 130]) / 255)
fitted = helm.context.latent_rgb

helm(
    PROMPTS,
    steps=12,
    guidance=4.0,
    seeds=7,
    output_type="latent",
    hooks=[half := tm.collect(rgb=borrowed)],
)
latents = helm.run.denoised
truth = torch.nn.functional.adaptive_avg_pool2d(helm.context.decode(latents), latents.shape[-2:])
alike = {
    name: float(-10 * torch.log10((rgb(latents) - truth).square().mean()))
    for name, rgb in (("fitted", fitted), ("SDXL", borrowed))
}

rows = [to_images(rgb)[0] for rgb in (truth, fitted(latents), borrowed(latents))]
display(strip(rows, ["decoder", "fitted", "SDXL's factors"], size=144))
verdict(
    f"«los mismos factores valen para cualquier modelo»: los de SDXL quedan a {alike['SDXL']:.1f} dB de los colores "
    "del decodificador; el mapa ajustado, a "
    f"{alike['fitted']:.1f} dB",
    f"“the same factors serve every model”: SDXL's are {alike['SDXL']:.1f} dB from the decoder's colours, the "
    f"fitted map {alike['fitted']:.1f} dB",
    alike["SDXL"] > alike["fitted"] - 1,
)
assert alike["fitted"] > alike["SDXL"]


# %% [es]
# Para un modelo sin mapa propio, timonel lo ajusta solo la primera vez que lo necesita;
# `tm.LatentRGB.fit(latentes, imágenes)` lo hace con las tuyas. El callback de siempre también
# funciona, y puede guardar lo que quieras: es un argumento del pipeline, y `Helm` se lo pasa. Los
# latentes que ve llevan el ruido del paso.
# %% [en]
# For a model without a map of its own, timonel fits one the first time it is needed;
# `tm.LatentRGB.fit(latents, images)` does it with yours. The classic callback works as well, and
# saves whatever you like: it is an argument of the pipeline, and `Helm` hands it on. The latents it
# sees carry the noise of the step.
# %%
def save_step(pipeline, i, t, callback_kwargs):
    to_images(fitted(callback_kwargs["latents"]), size=96)[0].save(f"paso_{i}.png")
    return callback_kwargs


done = helm(
    "red apple",
    steps=12,
    seeds=[7],
    callback_on_step_end=save_step,
    callback_on_step_end_tensor_inputs=["latents"],
).images[0]
shown = [0, 3, 6, 8, 10, 11]
display(strip([Image.open(f"paso_{i}.png") for i in shown], [f"paso_{i}.png" for i in shown]))
assert all(Path(f"paso_{i}.png").exists() for i in range(12))


# %% [es]
# ## Retocar los latentes
#
# Un hook puede cambiar `run.latents`; `tm.edit` es la forma corta. ¿Importa cuándo? Restamos lo
# mismo a un canal después del paso 1, del 6 y del 11, y miramos cuánto cambian los contornos y
# cuánto la imagen entera.
# %% [en]
# ## Retouching the latents
#
# A hook may change `run.latents`; `tm.edit` is the short way. Does it matter when? We take the same
# amount from one channel after step 1, 6 and 11, and see how much the outlines change, and how much
# the whole picture.
# %%
def edited(step):
    change = tm.edit(
        lambda latents: latents - torch.tensor([0.8, 0.0, 0.0, 0.0])[:, None, None], at=step
    )
    return helm(
        "red apple", sampler="dpmpp_2m/karras", steps=12, guidance=4.0, seeds=[7], hooks=[change]
    ).images[0]


def shape_change(picture, plain):
    """Change of the outlines: rms difference of the brightness steps between neighbouring pixels, 0
    … 255.
    """
    grey = [
        torch.frombuffer(bytearray(p.convert("L").tobytes()), dtype=torch.uint8)
        .view(64, 64)
        .float()
        for p in (picture, plain)
    ]
    return float((grey[0].diff() - grey[1].diff()).square().mean().sqrt())


plain = helm("red apple", sampler="dpmpp_2m/karras", steps=12, guidance=4.0, seeds=[7]).images[0]
retouched = {step: edited(step) for step in (1, 6, 11)}
outlines = {step: shape_change(picture, plain) for step, picture in retouched.items()}
display(strip([plain, *retouched.values()], ["plain", *(f"step {step}" for step in retouched)]))
for step, picture in retouched.items():
    print(f"step {step:2d}   outlines {outlines[step]:5.2f}   {psnr(picture, plain):5.1f} dB")
verdict(
    f"«el momento del retoque da igual»: tras el paso 1 los contornos cambian {outlines[1]:.1f}, tras el 11, "
    f"{outlines[11]:.1f}",
    f"“when you edit makes no difference”: after step 1 the outlines change by {outlines[1]:.1f}, after step 11 by "
    f"{outlines[11]:.1f}",
    abs(outlines[1] / outlines[11] - 1) < 0.1,
)
# %% [es]
# Temprano, el modelo aún está decidiendo qué dibujar y parte de tu retoque lo rehace a su manera;
# tarde, el dibujo ya está fijo y solo tiñes. Un recorrido también se puede **bifurcar**: se guarda
# donde está y cada rama sigue por su lado sin repetir lo andado (salvo una llamada, para volver a
# entrar en el bucle del pipeline).
# %% [en]
# Early, the model is still deciding what to draw and redoes part of your edit in its own way; late,
# the drawing is settled and you only tint it. A run can also be **branched**: it is kept where it
# is, and every branch goes its own way without repeating the road so far (but for one call, to
# enter the pipeline's loop again).
# %%
branches = []


def keep_a_branch(run):
    if run.step == 6:
        branches.append(run.branch())


settings = {"sampler": "dpmpp_2m/karras", "steps": 12, "guidance": 4.0, "seeds": [7]}
one = helm("red apple", **settings, hooks=[keep_a_branch]).images[0]
times.clear()
branches[0].latents += 0.3
other = helm("red apple", **settings, resume=branches[0]).images[0]
display(strip([one, other], ["run", "branch"]))
say(
    f"La rama ha costado {len(times)} llamadas en vez de 12.",
    f"The branch cost {len(times)} calls instead of 12.",
)
assert len(times) < 12
# %% [es]
# En segundo plano, `helm.start(...)` devuelve un mando con `pause()`, `resume()`, `stop()`,
# `rewind(k)`, `branch()` y `preview()`.
#
# ## Apagar la guía al 40 %
#
# Con guía, la red trabaja el doble: una mitad con tu texto y otra sin él. La idea de apagarla al 40
# % del camino es buena, y se le atribuyen tres cosas: el mismo resultado, más rapidez y menos
# memoria. Hay dos formas de hacerlo. Primero, cambiando un import: donde ponía `from
# diffusers.callbacks import …`, pon `from timonel.compat import …`.
# %% [en]
# In the background, `helm.start(...)` returns a handle with `pause()`, `resume()`, `stop()`,
# `rewind(k)`, `branch()` and `preview()`.
#
# ## Guidance off at 40 %
#
# With guidance the network works twice: one half with your text, one without. Switching it off at
# 40 % of the way is a good idea, and three things are said of it: the same result, more speed and
# less memory. There are two ways to do it. First, by changing one import: `from timonel.compat
# import …` where it said `from diffusers.callbacks import …`.
# %%
from timonel.compat import SDXLCFGCutoffCallback

samples.clear()
done = pipe(
    "red apple",
    num_inference_steps=STEPS,
    generator=seeded(),
    callback_on_step_end=SDXLCFGCutoffCallback(cutoff_step_ratio=0.4),
)
by_callback = list(samples)

samples.clear()
done = helm(
    "red apple", sampler="euler/leading", steps=STEPS, seeds=[7], guidance=tm.cfg(5.0, until=0.4)
)
by_helm = list(samples)
print("callback", by_callback)
print("helm    ", by_helm)
say(
    f"El callback actúa al final de su paso, así que guía {by_callback.count(2)} de {STEPS}; `until=0.4` guía "
    f"{by_helm.count(2)}.",
    f"The callback acts at the end of its step, so it guides {by_callback.count(2)} of {STEPS}; `until=0.4` guides "
    f"{by_helm.count(2)}.",
)
assert by_helm.count(2) == by_callback.count(2) - 1 == int(0.4 * STEPS)
# %% [es]
# Ahora el tiempo. Las dos variantes se turnan, para que lo que más haga tu máquina les toque por
# igual, y se queda la mediana de los cocientes. Con una red pequeña, un lote doble cuesta menos del
# doble, así que el ahorro puede quedarse corto; con una grande se acerca a lo que dicen las
# muestras.
# %% [en]
# Now the time. The two variants take turns, so that whatever else your machine does falls on both
# alike, and the median of the ratios is kept. With a small network a doubled batch costs less than
# twice as much, so the saving may fall short; with a large one it comes close to what the samples
# say.
# %%
import time
from statistics import median


def guided(until):
    return tm.cfg(4.0, until=until) if until else tm.cfg(1.0)


def make(guidance, steps=STEPS):
    """Latents of the prompts, and the seconds they took."""
    began = time.perf_counter()
    made = helm(
        PROMPTS,
        sampler="dpmpp_2m/karras",
        steps=steps,
        guidance=guidance,
        seeds=7,
        output_type="latent",
    ).images
    return made, time.perf_counter() - began


pairs = [[make(guided(until))[1] for until in (1.0, 0.4)] for _ in range(REPEATS)]
ratio = median(cut / full for full, cut in pairs)
share = (len(by_helm) + int(0.4 * STEPS)) / (2 * len(by_helm))
verdict(
    f"«más rápido»: cortada al 40 % tarda el {ratio:.0%} de lo que tarda entera; la red ve el {share:.0%} de las "
    "muestras",
    f"“faster”: cut at 40 % it takes {ratio:.0%} of the full time; the network sees {share:.0%} of the samples",
    ratio < 0.95,
)


# %% [es]
# ¿Y el resultado? Cuánto se parece la imagen a la guiada hasta el final, según dónde se corte.
# Damos por iguales dos imágenes a 30 dB o más. La última fila guía al final en vez de al principio,
# y cuesta lo mismo que el 40 %.
# %% [en]
# And the result? How alike the picture is to the one guided all the way, by where it is cut. We
# call two pictures the same at 30 dB or more. The last row guides at the end instead of at the
# beginning, and costs the same as 40 %.
# %%
def pictures(guidance):
    return to_images(helm.context.decode(make(guidance)[0]))


full = pictures(guided(1.0))
cut = {f"{until:.0%}": pictures(guided(until)) for until in CUTS}
cut["60-100%"] = pictures(tm.cfg(4.0, between=(0.6, 1.0)))
worst = {name: min(map(psnr, images, full)) for name, images in cut.items()}
for name, images in cut.items():
    print(f"{name:>8}", " ".join(f"{value:5.1f}" for value in map(psnr, images, full)), "dB")
last = len(PROMPTS) - 1
display(
    strip(
        [full[last], *(images[last] for images in cut.values())], ["100%", *cut], size=96, across=7
    )
)
verdict(
    f"«mismo resultado»: con corte al 40 %, la imagen que menos se parece queda a {worst['40%']:.1f} dB; al 80 %, a "
    f"{worst['80%']:.1f} dB",
    f"“same result”: cut at 40 %, the least alike picture is at {worst['40%']:.1f} dB; at 80 %, {worst['80%']:.1f} dB",
    worst["40%"] >= 30,
)
early = [
    one > two
    for one, two in zip(*(map(psnr, cut[name], full) for name in ("40%", "60-100%")), strict=True)
]
verdict(
    f"«la guía cuenta sobre todo al principio»: guiar solo el primer 40 % se parece más que guiar solo el último en "
    f"{sum(early)} de {len(early)} imágenes",
    f"“guidance matters most at the beginning”: guiding the first 40 % only is more alike than guiding the last 40 % "
    f"only in {sum(early)} of {len(early)} pictures",
    *early,
)
# %% [es]
# ## ¿Y la memoria?
#
# Lo que decide si cabe en tu GPU es el **pico**. Lo medimos con el profiler de torch, que apunta
# cada tensor que se reserva y se libera (en CUDA, `torch.cuda.max_memory_allocated()` dice lo
# mismo). Sin contar los pesos del modelo.
# %% [en]
# ## And the memory?
#
# What decides whether it fits your GPU is the **peak**. We measure it with torch's profiler, which
# notes every tensor that is allocated and freed (on CUDA, `torch.cuda.max_memory_allocated()` says
# the same). The model's weights are not counted.
# %%
import json

from torch.profiler import ProfilerActivity, profile


def peak(job):
    """The most memory that the tensors of a job held at one moment, in MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        job()
    profiled.export_chrome_trace("memory.json")
    events = json.loads(Path("memory.json").read_text())["traceEvents"]
    return (
        max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]")
        / 2**20
    )


make(guided(1.0), 2)
peaks = {until: peak(lambda until=until: make(guided(until), 5)) for until in (1.0, 0.4, 0.0)}
for until, mib in peaks.items():
    print(f"until {until:4.0%}   {mib:6.2f} MiB")
verdict(
    f"«menos VRAM»: el pico con corte es el {peaks[0.4] / peaks[1.0]:.0%} del de la guía entera; sin guía desde el "
    f"principio, el {peaks[0.0] / peaks[1.0]:.0%}",
    f"“less VRAM”: the peak with the cut is {peaks[0.4] / peaks[1.0]:.0%} of that of full guidance; without guidance "
    f"from the start, {peaks[0.0] / peaks[1.0]:.0%}",
    peaks[0.4] < 0.95 * peaks[1.0],
)
assert 0.9 < peaks[0.4] / peaks[1.0] < 1.1
assert peaks[0.0] < peaks[1.0]
# %% [es]
# El corte ahorra tiempo, no pico: en los primeros pasos el lote aún es doble. Para bajar el pico
# hay que quitar la guía desde el primer paso (un modelo destilado, por ejemplo) o calcular las dos
# mitades una detrás de otra.
#
# ## Con vídeo: Stable Video Diffusion
#
# «En SVD los callbacks funcionan igual»: vamos a verlo.
# %% [en]
# The cut saves time, not peak: in the first steps the batch is still doubled. To lower the peak,
# guidance has to be off from the first step (a distilled model, for instance), or the two halves
# computed one after the other.
#
# ## With video: Stable Video Diffusion
#
# “Callbacks work just the same on SVD”: let us see.
# %% [include _video]
# %%
from diffusers.callbacks import SDCFGCutoffCallback


def stop_at_2(pipeline, i, t, callback_kwargs):
    if i == 2:
        pipeline._interrupt = True
    return callback_kwargs


def own(callback, steps=8):
    """What a callback does in diffusers' own loop: how many calls the network gets, or the error."""
    video_times.clear()
    ended = attempt(
        lambda: (
            video_pipe(**VIDEO, num_inference_steps=steps, callback_on_step_end=callback).frames
            and None
        )
    )
    return ended or len(video_times)


interrupted, cutoff = own(stop_at_2), own(SDCFGCutoffCallback(cutoff_step_ratio=0.4))
print("_interrupt          ", interrupted)
print("SDCFGCutoffCallback ", cutoff)
verdict(
    f"«funcionan igual»: `_interrupt` en el paso 2 de 8 deja {interrupted} llamadas, y el corte oficial acaba en "
    f"`{str(cutoff).split(':')[0]}`",
    f"“work just the same”: `_interrupt` at step 2 of 8 leaves {interrupted} calls, and the official cutoff ends in "
    f"`{str(cutoff).split(':')[0]}`",
    interrupted == 3,
    isinstance(cutoff, int),
)


# %% [es]
# Con timonel sí: parar, cortar la guía (que en SVD crece de fotograma en fotograma), guardar los
# fotogramas de cada paso y retocar uno solo. Los latentes de un vídeo tienen forma (vídeos,
# fotogramas, canales, alto, ancho), y por eso `latents_to_rgb` ni siquiera llega a dar una imagen.
# %% [en]
# With timonel it does: stop, cut the guidance (which in SVD grows from frame to frame), keep the
# frames of every step, and retouch a single one. The latents of a video have the shape (videos,
# frames, channels, height, width), which is why `latents_to_rgb` does not even get to a picture.
# %%
def second_frame(run):
    if run.step == 3:
        run.latents[:, 1] += 0.2


video_samples.clear()
made = video_helm(
    **VIDEO, sampler="dpmpp_2m_sde/karras", steps=8, seeds=[3], guidance=tm.cfg(until=0.4),
    hooks=[second_frame, tm.preview("frames", decode=True),
    tm.stop_when(lambda run: run.step == 6)],
)  # fmt: skip
frames = made.frames[0]
batches = [size // VIDEO["num_frames"] for size in video_samples]
shape = tuple(video_helm.run.latents.shape)


def latents_to_rgb(latents):
    rgb = (
        torch.einsum("...lxy,lr->...rxy", latents, FACTORS.T)
        + torch.tensor([150.0, 140, 130])[:, None, None]
    )
    return Image.fromarray(rgb.clamp(0, 255).byte().numpy().transpose(1, 2, 0))


print("batches       ", batches)
print("latents       ", shape)
print("latents_to_rgb", attempt(lambda: latents_to_rgb(video_helm.run.latents[0])))
print("files         ", *sorted(path.name for path in Path("frames").iterdir()))
assert batches == [2, 2, 2, 2, 1, 1] or batches == [2, 2, 2, 1, 1, 1]
assert (len(frames), video_helm.run.status) == (VIDEO["num_frames"], "stopped")
assert len(list(Path("frames").glob("*.png"))) == 6
# %% [es]
# Cada `step-0N.png` es una hoja con todos los fotogramas de ese paso. El vídeo se guarda con
# `timonel.make.video.write` (`.mp4`, `.gif` o `.webp`), y el callback de corte también vale para
# SVD si sale de `timonel.compat`.
# %% [en]
# Every `step-0N.png` is a sheet with all frames of that step. The video is saved with
# `timonel.make.video.write` (`.mp4`, `.gif` or `.webp`), and the cutoff callback is good for SVD
# too when it comes from `timonel.compat`.
# %%
from timonel import compat
from timonel.make import video

video.write(frames, "apple.mp4", fps=7)
video_samples.clear()
done = video_pipe(
    **VIDEO,
    num_inference_steps=5,
    callback_on_step_end=compat.SDCFGCutoffCallback(cutoff_step_ratio=0.4),
)
print([size // VIDEO["num_frames"] for size in video_samples], Path("apple.mp4").stat().st_size > 0)
assert [size // VIDEO["num_frames"] for size in video_samples] == [2, 2, 2, 1, 1]
# %% [es]
# ## Para llevarse
#
# | quieres | escribe |
# |---|---|
# | parar | `tm.stop_when(lambda run: run.step == 10)` o `run.stop()` |
# | ver cada paso | `tm.preview("carpeta")`, `tm.collect()` |
# | guardar los tensores | `tm.save_steps("carpeta")` |
# | retocar | `tm.edit(cambio, at=3)` o `run.latents[...] = ...` |
# | guía solo donde compensa | `tm.cfg(4, until=0.4)`, `tm.cfg(4, between=(0.1, 0.6))`, una escala
# por paso |
# | ir por otro camino | `run.branch()` y `resume=`, `run.rewind(k)`, `helm.start(...)` |
# | no cambiar tu código | `from timonel.compat import …` |
#
# El otro tutorial, *El rumbo*, va de lo que decide un scheduler.
# %% [en]
# ## To take away
#
# | you want to | write |
# |---|---|
# | stop | `tm.stop_when(lambda run: run.step == 10)` or `run.stop()` |
# | see every step | `tm.preview("folder")`, `tm.collect()` |
# | keep the tensors | `tm.save_steps("folder")` |
# | retouch | `tm.edit(change, at=3)` or `run.latents[...] = ...` |
# | guidance only where it pays | `tm.cfg(4, until=0.4)`, `tm.cfg(4, between=(0.1, 0.6))`, one scale
# per step |
# | go another way | `run.branch()` and `resume=`, `run.rewind(k)`, `helm.start(...)` |
# | leave your code alone | `from timonel.compat import …` |
#
# The other tutorial, *The course*, is about what a scheduler decides.
