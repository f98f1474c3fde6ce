# %% [es]
# # El rumbo: qué decide un scheduler
#
# El modelo sabe *qué* ruido hay que quitar. El scheduler decide *cuánto* en cada paso, *por qué
# niveles de ruido* pasar y *con qué fórmula*. Con el mismo modelo y la misma semilla, eso basta
# para que una imagen salga bien en 10 pasos o mal en 25.
#
# Cada consejo que circula sobre schedulers se mide aquí en una celda: la frase que empieza por ✔, ◐
# o ✘ sale del número recién calculado, no está escrita de antemano. Lo medido vale para el modelo
# pequeño de emojis de timonel; cambia el modelo y vuelve a ejecutar.
# %% [en]
# # The course: what a scheduler decides
#
# The model knows *what* noise to remove. The scheduler decides *how much* at every step, *which
# noise levels* to visit, and *by which formula*. With the same model and the same seed, that is
# enough to make a picture come out well in 10 steps, or badly in 25.
#
# Every piece of advice about schedulers is measured in a cell here: the sentence that begins with
# ✔, ◐ or ✘ comes from the number just computed and was not written beforehand. What is measured
# holds for timonel's small emoji model; change the model and run it again.
# %% [include _setup]
# %% [parameters]
FEW, MANY, FINE = 10, 25, 50
PROMPTS = ["red apple", "ghost", "cat face"]
# %% [es]
# ## Niveles de ruido
#
# Una muestra a medio camino es `alpha · imagen + sigma · ruido`. El tiempo `t`, de 999 a 0, es solo
# el nombre que la red aprendió para cada nivel; lo que cuenta es `sigma/alpha`, cuánto ruido hay
# por cada parte de imagen. Muchas páginas lo llaman *sigma* a secas.
# %% [en]
# ## Noise levels
#
# A sample on its way is `alpha · picture + sigma · noise`. The time `t`, from 999 to 0, is just the
# name that the network learnt for each level; what counts is `sigma/alpha`, how much noise there is
# for each part of picture. Many pages simply call it *sigma*.
# %%
from timonel import zoo
from timonel.hooks.rgb import to_images

process = zoo.process_of("emoji")
shown = [999, 750, 500, 250, 100, 0]
levels = process.at_time(torch.tensor(shown, dtype=torch.float64))
for t, alpha, sigma in zip(shown, levels.alpha.tolist(), levels.sigma.tolist(), strict=True):
    print(f"t {t:3d}   alpha {alpha:.4f}   sigma {sigma:.4f}   sigma/alpha {sigma / alpha:8.4f}")

picture = helm("red apple", steps=12, guidance=4.0, seeds=[7], output_type="latent").images
noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
noised = [
    alpha * picture + sigma * noise
    for alpha, sigma in zip(levels.alpha.float(), levels.sigma.float(), strict=True)
]
display(strip([to_images(helm.context.decode(x))[0] for x in noised], [f"t {t}" for t in shown]))
assert float(levels.alpha.square().add(levels.sigma.square()).sub(1).abs().max()) < 1e-9
# %% [es]
# ## Un sampler es una tabla
#
# Se puede ver entera antes de empezar. En cada fila, la red mira `x` a un nivel y da `h0`, la
# imagen limpia que supone; la fila dice con qué números se mezclan para tener la `x` siguiente.
# `h1` es la predicción de la fila anterior: ahí está la gracia de DPM++ 2M.
# %% [en]
# ## A sampler is a table
#
# All of it can be seen before it begins. In every row the network looks at `x` at one level and
# gives `h0`, the clean picture it supposes; the row says which numbers mix them into the next `x`.
# `h1` is the prediction of the row before: that is the point of DPM++ 2M.
# %%
for name in ("euler/trailing", "dpmpp_2m/karras"):
    print(tm.Sampler(name, steps=4).compile(process), end="\n\n")
# %% [es]
# ## Cambiar de scheduler
#
# Dos maneras. Con `Helm`, un nombre. En un script que ya tienes, las clases de siempre cambiando el
# import: `from timonel.compat import …` donde ponía `from diffusers import …`. Mismos argumentos,
# misma imagen: la clase de `compat` repite la de diffusers, que redondea los tiempos de DPM++ a
# enteros; `Helm` no redondea, y de ahí la diferencia mínima.
# %% [en]
# ## Changing the scheduler
#
# Two ways. With `Helm`, a name. In a script that you already have, the classes you know, with
# another import: `from timonel.compat import …` where it said `from diffusers import …`. Same
# arguments, same picture: the class of `compat` repeats that of diffusers, which rounds the times
# of DPM++ to integers; `Helm` does not round, hence the tiny difference.
# %%
import diffusers

from timonel import compat


def rms(a, b):
    """Distance between latents, whose standard deviation is about 1."""
    return float((a - b).square().mean().sqrt())


own = pipe.scheduler
call = {"num_inference_steps": FEW, "guidance_scale": 4.0, "output_type": "latent"}
by_class = {}
for package in (diffusers, compat):
    pipe.scheduler = package.DPMSolverMultistepScheduler.from_config(
        own.config, use_karras_sigmas=True
    )
    by_class[package] = pipe("red apple", generator=torch.Generator().manual_seed(7), **call).images
pipe.scheduler = own
by_name = helm(
    "red apple", sampler="dpmpp_2m/karras", steps=FEW, guidance=4.0, seeds=[7], output_type="latent"
).images
print(f"compat - Helm       {rms(by_class[compat], by_name):.1e}")
print(f"compat - diffusers  {rms(by_class[compat], by_class[diffusers]):.1e}")
assert rms(by_class[compat], by_class[diffusers]) < 1e-4
assert rms(by_class[compat], by_name) < 1e-2
# %% [es]
# ## La vara de medir
#
# «Más detalle» o «mejor» no se pueden medir. Esto sí: con la misma semilla, un método determinista
# y muchos pasos se llega a una imagen límite, la que el modelo tiene en mente. Cuanto más cerca
# queda un scheduler con pocos pasos, mejor hace su trabajo. La distancia va en latentes (desviación
# típica 1, más o menos), sobre varias imágenes.
# %% [en]
# ## The yardstick
#
# “More detail” or “better” cannot be measured. This can: with the same seed, a deterministic method
# and many steps one arrives at a limit, the picture that the model has in mind. The closer a
# scheduler comes to it in few steps, the better it does its job. Distances are in latents (standard
# deviation about 1), over several pictures.
# %%
from functools import cache


@cache
def made(sampler, steps, **options):
    """Latents of the prompts; each is made once."""
    asked = tm.Sampler(sampler, steps=steps, **options)
    return helm(PROMPTS, sampler=asked, guidance=4.0, seeds=7, output_type="latent").images


def far(sampler, steps):
    """Distance to the limit."""
    return rms(made(sampler, steps), limit)


def first(latents):
    return to_images(helm.context.decode(latents[:1]))[0]


limit = made("unipc/karras", FINE)
print(f"unipc {FINE} - dpmpp_3m {FINE // 2}: {rms(limit, made('dpmpp_3m/karras', FINE // 2)):.4f}")
assert far("dpmpp_2m/karras", MANY) < far("dpmpp_2m/karras", FEW)
# %% [es]
# Ese número es lo que vale la vara: dos métodos distintos con muchos pasos llegan casi al mismo
# sitio.
#
# ## En qué tiempos parar: leading, linspace, trailing
#
# Esto es lo que de verdad hace diffusers con 10 pasos. Muchas guías dicen que *linspace* empieza en
# 1000.
# %% [en]
# The number is what the yardstick is worth: two different methods with many steps arrive at nearly
# the same place.
#
# ## Which times to visit: leading, linspace, trailing
#
# This is what diffusers really does with 10 steps. Many guides say that *linspace* begins at 1000.
# %%
begins = {}
for spacing in ("leading", "linspace", "trailing"):
    theirs = diffusers.EulerDiscreteScheduler.from_config(own.config, timestep_spacing=spacing)
    theirs.set_timesteps(10)
    visited = [round(t) for t in theirs.timesteps.tolist()]
    begins[spacing] = visited[0]
    print(f"{spacing:9}", visited, f"sigma/alpha {float(theirs.sigmas[0]):.2f}")
verdict(
    f"«linspace empieza en 1000»: empieza en {begins['linspace']}; el modelo se entrenó con los tiempos 0 a 999",
    f"“linspace begins at 1000”: it begins at {begins['linspace']}; the model was trained on the times 0 to 999",
    begins["linspace"] == 1000,
)
assert begins == {"leading": 901, "linspace": 999, "trailing": 999}
# %% [es]
# *Leading* empieza donde el modelo espera que ya se vea algo de imagen, y se le da ruido puro. Por
# eso se recomienda *trailing* con pocos pasos. ¿Con cualquier sampler?
# %% [en]
# *Leading* begins where the model expects some picture to show already, and is given pure noise.
# That is why *trailing* is recommended for few steps. With any sampler?
# %%
GRIDS = ("leading", "linspace", "trailing", "karras", "ays")
errors = {
    solver: {grid: far(f"{solver}/{grid}", FEW) for grid in GRIDS}
    for solver in ("euler", "dpmpp_2m")
}
print(" " * 10, *(f"{grid:>9}" for grid in GRIDS))
for solver, row in errors.items():
    print(f"{solver:10}", *(f"{error:9.3f}" for error in row.values()))
display(
    strip(
        [*(first(made(f"dpmpp_2m/{grid}", FEW)) for grid in GRIDS), first(limit)], [*GRIDS, "limit"]
    )
)
verdict(
    f"«trailing, mejor con pocos pasos» ({FEW}, frente a leading): con DPM++ 2M, "
    f"{errors['dpmpp_2m']['trailing']:.3f} contra "
    f"{errors['dpmpp_2m']['leading']:.3f}; con Euler, {errors['euler']['trailing']:.3f} contra "
    f"{errors['euler']['leading']:.3f}",
    f"“trailing, better with few steps” ({FEW}, against leading): with DPM++ 2M, {errors['dpmpp_2m']['trailing']:.3f} "
    f"against {errors['dpmpp_2m']['leading']:.3f}; with Euler, {errors['euler']['trailing']:.3f} against "
    f"{errors['euler']['leading']:.3f}",
    *(row["trailing"] < row["leading"] for row in errors.values()),
)
# %% [es]
# ## Align Your Steps
#
# AYS (NVIDIA, 2024) son diez tiempos buscados por optimización para cada familia de modelos. «10
# pasos con la misma calidad»: comparemos con 25 pasos de lo que viene de serie (Euler con
# *leading*) y con otras rejillas de 10.
# %% [en]
# ## Align Your Steps
#
# AYS (NVIDIA, 2024) is ten times found by optimisation for each family of models. “10 steps, same
# quality”: let us compare with 25 steps of what comes as default (Euler on *leading*), and with
# other grids of 10.
# %%
times.clear()
pipe.scheduler = compat.EulerDiscreteScheduler.from_config(own.config)
done = pipe("red apple", timesteps=compat.AysSchedules["StableDiffusionXLTimesteps"])
pipe.scheduler = own
print([round(t) for t in times])
assert times == [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]

short = {f"{solver}/ays": far(f"{solver}/ays", 10) for solver in ("euler", "dpmpp_2m")}
long = {
    name: far(name, MANY)
    for name in ("euler/leading", "dpmpp_2m/leading", "dpmpp_2m/trailing", "dpmpp_2m/karras")
}
for steps, row in ((10, short), (MANY, long)):
    for name, error in row.items():
        print(f"{name:18} {steps:2d}   {error:.3f}")
reached = [name for name, error in long.items() if min(short.values()) <= error]
verdict(
    f"«AYS, 10 pasos y misma calidad»: {min(short.values()):.3f} en 10 pasos; iguala en {MANY} pasos a "
    f"{', '.join(reached) or 'ninguna'} de {len(long)} rejillas",
    f"“AYS, 10 steps and same quality”: {min(short.values()):.3f} in 10 steps; it equals {MANY} steps of "
    f"{', '.join(reached) or 'none'} out of {len(long)} grids",
    *(min(short.values()) <= error for error in long.values()),
)
best = min(GRIDS, key=lambda grid: errors["dpmpp_2m"][grid])
verdict(
    f"«AYS, mejor que otras rejillas de {FEW}»: la más cercana con DPM++ 2M es {best}",
    f"“AYS, better than other grids of {FEW}”: the closest with DPM++ 2M is {best}",
    best == "ays",
)


# %% [es]
# ## Karras
#
# «Más detalle, siempre». Medimos dos cosas que suelen confundirse: la distancia al límite y el
# detalle, que aquí es la energía de los contornos comparada con la del límite (1 es la suya; por
# encima puede ser ruido que quedó sin quitar).
# %% [en]
# ## Karras
#
# “More detail, always.” We measure two things that are often taken for one: the distance to the
# limit, and detail, which here is the energy of the outlines over that of the limit (1 is its own;
# above may be noise that was left in).
# %%
def detail(latents):
    picture = helm.context.decode(latents)
    return float(picture.diff(dim=-1).square().mean() + picture.diff(dim=-2).square().mean())


karras = []
for steps in (FEW, MANY):
    for grid in ("leading", "trailing", "karras"):
        latents = made(f"dpmpp_2m/{grid}", steps)
        karras.append((steps, grid, detail(latents) / detail(limit), rms(latents, limit)))
        print(f"{grid:9} {steps:2d}   detail {karras[-1][2]:.2f}   distance {karras[-1][3]:.3f}")
by = {(steps, grid): (much, error) for steps, grid, much, error in karras}
verdict(
    f"«Karras, siempre más detalle» (frente a leading y trailing): con {FEW} pasos, {by[FEW, 'karras'][0]:.2f} contra "
    f"{by[FEW, 'leading'][0]:.2f} y {by[FEW, 'trailing'][0]:.2f}; con {MANY}, {by[MANY, 'karras'][0]:.2f} contra "
    f"{by[MANY, 'leading'][0]:.2f} y {by[MANY, 'trailing'][0]:.2f}",
    f"“Karras, always more detail” (against leading and trailing): with {FEW} steps, {by[FEW, 'karras'][0]:.2f} "
    "against "
    f"{by[FEW, 'leading'][0]:.2f} and {by[FEW, 'trailing'][0]:.2f}; with {MANY}, {by[MANY, 'karras'][0]:.2f} against "
    f"{by[MANY, 'leading'][0]:.2f} and {by[MANY, 'trailing'][0]:.2f}",
    *(
        by[steps, "karras"][0] > by[steps, grid][0]
        for steps in (FEW, MANY)
        for grid in ("leading", "trailing")
    ),
)
verdict(
    f"«Karras, más cerca del límite»: con {FEW} pasos, {by[FEW, 'karras'][1]:.3f}; con {MANY}, "
    f"{by[MANY, 'karras'][1]:.3f}",
    f"“Karras, closer to the limit”: with {FEW} steps, {by[FEW, 'karras'][1]:.3f}; with {MANY}, "
    f"{by[MANY, 'karras'][1]:.3f}",
    *(
        by[steps, "karras"][1] < by[steps, grid][1]
        for steps in (FEW, MANY)
        for grid in ("leading", "trailing")
    ),
)
# %% [es]
# También se lee que Karras pone más pasos «en la parte media, donde se deciden la estructura y los
# detalles». Contemos los pasos por tramos de sigma/alpha. Y de paso, «Karras + trailing»: ¿qué
# añade *trailing* cuando los niveles ya los pone Karras?
# %% [en]
# One also reads that Karras puts more steps “in the middle, where structure and details are
# decided”. Let us count the steps by ranges of sigma/alpha. And while at it, “Karras + trailing”:
# what does *trailing* add when Karras already sets the levels?
# %%
counts = {}
for grid in ("trailing", "karras"):
    table = tm.Sampler(f"dpmpp_2m/{grid}", steps=20).compile(process)
    ratios = (table.sigma / table.alpha)[:-1]
    counts[grid] = [
        int(((ratios > low) & (ratios <= high)).sum())
        for low, high in ((3, 99), (0.3, 3), (0, 0.3))
    ]
    print(
        f"{grid:9} > 3: {counts[grid][0]:2d}   0.3 … 3: {counts[grid][1]:2d}   < 0.3: {counts[grid][2]:2d}"
    )
verdict(
    f"«más pasos en la parte media»: de 20, Karras pone ahí {counts['karras'][1]} y trailing {counts['trailing'][1]}; "
    f"casi limpia, {counts['karras'][2]} contra {counts['trailing'][2]}",
    f"“more steps in the middle”: of 20, Karras puts {counts['karras'][1]} there and trailing {counts['trailing'][1]}; "
    f"nearly clean, {counts['karras'][2]} against {counts['trailing'][2]}",
    counts["karras"][1] > counts["trailing"][1],
)

ranges, names = {}, ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
for name in names:
    for spacing in ("leading", "trailing"):
        theirs = getattr(diffusers, name).from_config(
            own.config, use_karras_sigmas=True, timestep_spacing=spacing
        )
        theirs.set_timesteps(FEW)
        ranges[name, spacing] = [round(float(s), 3) for s in (theirs.sigmas[0], theirs.sigmas[-2])]
        print(f"{name:27} {spacing:8} sigma/alpha", *ranges[name, spacing])
dpm, euler = ([ranges[name, spacing] for spacing in ("leading", "trailing")] for name in names)
verdict(
    f"«DPM++ con Karras + trailing, mejor que con Karras solo»: los niveles van de {dpm[0][0]} a {dpm[0][1]} con "
    "leading y de "
    f"{dpm[1][0]} a {dpm[1][1]} con trailing",
    f"“DPM++ with Karras + trailing, better than with Karras alone”: the levels go from {dpm[0][0]} to {dpm[0][1]} "
    "on leading "
    f"and from {dpm[1][0]} to {dpm[1][1]} on trailing",
    dpm[0] != dpm[1],
)
assert dpm[0] == dpm[1]
assert euler[0] != euler[1]
say(
    f"Con Euler, de {euler[0][0]} a {euler[0][1]} y de {euler[1][0]} a {euler[1][1]}: cambia el tramo que se "
    "reparte Karras.",
    f"With Euler, from {euler[0][0]} to {euler[0][1]} and from {euler[1][0]} to {euler[1][1]}: the range that "
    "Karras shares out changes.",
)
# %% [es]
# ## ¿Dónde se hace la imagen?
#
# «La mayor reconstrucción ocurre en la mitad.» Sigamos la predicción limpia a lo largo de un
# recorrido fino, con pasos iguales en `t`, y sumemos cuánto cambia en cada tercio.
# %% [en]
# ## Where is the picture made?
#
# “Most of the reconstruction happens in the middle.” Let us follow the clean prediction on a fine
# journey, with equal steps in `t`, and add up how much it changes in each third.
# %%
from itertools import pairwise

path = []
done = helm(
    PROMPTS, sampler="euler/trailing", steps=FINE // 2, guidance=4.0, seeds=7, output_type="latent",
    hooks=[lambda run: path.append((run.called_at.time, run.denoised.clone()))],
)  # fmt: skip
moved = [(t, rms(now, before)) for (_, before), (t, now) in pairwise(path)]
thirds = [sum(d for t, d in moved if low <= t < low + 333.4) for low in (666.6, 333.3, 0)]
shares = [third / sum(thirds) for third in thirds]
say(
    f"Principio {shares[0]:.0%}, mitad {shares[1]:.0%}, final {shares[2]:.0%} del cambio.",
    f"Beginning {shares[0]:.0%}, middle {shares[1]:.0%}, end {shares[2]:.0%} of the change.",
)
verdict(
    f"«la mayor reconstrucción, en la mitad de los tiempos»: ahí ocurre el {shares[1]:.0%} del cambio",
    f"“most of the reconstruction, in the middle of the times”: {shares[1]:.0%} of the change happens there",
    shares[1] == max(shares),
)
assert abs(sum(shares) - 1) < 1e-9
# %% [es]
# ## Tus propios sigmas
#
# Una lista de sigmas cambia los niveles, no la fórmula: no es verdad que «ignore el scheduler». En
# diffusers, además, no la acepta cualquier clase. Con timonel vale para todas, con o sin el 0
# final.
# %% [en]
# ## Sigmas of your own
#
# A list of sigmas changes the levels, not the formula: it is not true that it “ignores the
# scheduler”. In diffusers, moreover, not every class takes one. With timonel all do, with or
# without the 0 at the end.
# %%
SIGMAS = (14.6, 6.3, 3.7, 2.1, 1.3, 0.8, 0.5, 0.3, 0.2, 0.1, 0.0)


def with_sigmas(package):
    pipe.scheduler = package.DPMSolverMultistepScheduler.from_config(own.config)
    try:
        options = {
            "generator": torch.Generator().manual_seed(7),
            "guidance_scale": 4.0,
            "output_type": "latent",
        }
        return pipe("red apple", sigmas=list(SIGMAS), **options).images
    finally:
        pipe.scheduler = own


print("diffusers:", attempt(lambda: with_sigmas(diffusers)))
print("compat:   ", type(with_sigmas(compat)).__name__)
mine = {solver: made(solver, None, sigmas=SIGMAS) for solver in ("euler", "dpmpp_2m")}
for solver, latents in mine.items():
    print(f"{solver:9} {rms(latents, limit):.3f}   karras {errors[solver]['karras']:.3f}")
verdict(
    "«una lista de sigmas ignora el scheduler»: con la misma lista, Euler y DPM++ 2M se separan "
    f"{rms(*mine.values()):.3f}",
    "“a list of sigmas ignores the scheduler”: with the same list, Euler and DPM++ 2M are "
    f"{rms(*mine.values()):.3f} apart",
    rms(*mine.values()) < 1e-3,
)
assert rms(*mine.values()) > 1e-3


# %% [es]
# ## Cero SNR al final
#
# Con los niveles de Stable Diffusion, en `t = 999` queda un 7 % de imagen (alpha = 0,068), pero al
# generar se parte de ruido puro. El modelo lee en ese ruido un brillo medio y casi nunca hace
# imágenes negras o blancas. `rescale_betas_zero_snr` baja alpha hasta 0; solo sirve si el modelo se
# entrenó así, con `v_prediction`. El de emojis predice el ruido y timonel lo dice en vez de seguir:
# %% [en]
# ## Zero SNR at the end
#
# With Stable Diffusion's levels, 7 % of the picture is left at `t = 999` (alpha = 0.068), but
# generation begins with pure noise. The model reads a medium brightness in that noise and hardly
# ever makes black or white pictures. `rescale_betas_zero_snr` lowers alpha to 0; it only serves
# models that were trained that way, with `v_prediction`. The emoji model predicts the noise, and
# timonel says so instead of going on:
# %%
def zero_snr():
    pipe.scheduler = compat.DDIMScheduler.from_config(
        own.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    try:
        return pipe("red apple", num_inference_steps=4)
    finally:
        pipe.scheduler = own


refused = attempt(zero_snr)
print(refused)
assert "v_prediction" in str(refused)
# %% [es]
# Para ver el efecto basta un modelo exacto: un mundo con tres imágenes de 64x64, negra, gris y
# blanca (más un poco de grano), cada una con probabilidad 1/3. Su denoiser se escribe en cinco
# líneas, sin entrenar nada.
# %% [en]
# To see the effect, an exact model will do: a world with three 64x64 pictures, black, grey and
# white (and a little grain), each with probability 1/3. Its denoiser takes five lines and no
# training.
# %%
SHADES, GRAIN = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), 0.05


def denoise(x, level):
    variance = (level.alpha * GRAIN) ** 2 + level.sigma**2
    apart = x[:, None] - level.alpha * SHADES[:, None]
    likely = torch.softmax(-apart.square().sum(-1) / (2 * variance), -1)
    clean = SHADES[:, None] + level.alpha * GRAIN**2 / variance * apart
    return (likely[..., None] * clean).sum(1)


start = torch.randn(150, 64 * 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
shares, sheets = {}, []
for name, rescale in (("alpha 0.068", False), ("alpha 0", True)):
    world = tm.VP.from_schedule(rescale_zero_snr=rescale)
    result = tm.sample(denoise, start, "ddim/trailing", process=world, steps=20)
    shares[rescale] = [
        float(((result.mean(1) - shade).abs() < 0.5).double().mean()) for shade in SHADES
    ]
    sheets += to_images((result[:6].view(-1, 1, 64, 64).expand(-1, 3, -1, -1) + 1) / 2)
    print(
        f"{name:12}",
        *(
            f"{word} {share:4.0%}  "
            for word, share in zip(("black", "grey", "white"), shares[rescale], strict=True)
        ),
    )
display(
    strip(
        [picture.convert("RGB") for picture in sheets],
        ["alpha 0.068"] * 6 + ["alpha 0"] * 6,
        size=72,
    )
)
verdict(
    f"«sin cero SNR faltan las imágenes muy oscuras o claras»: salen {1 - shares[False][1]:.0%} negras o blancas; "
    "con cero "
    f"SNR, {1 - shares[True][1]:.0%}; lo justo sería 67%",
    f"“without zero SNR very dark or bright pictures are missing”: {1 - shares[False][1]:.0%} are black or white; with "
    f"zero SNR, {1 - shares[True][1]:.0%}; fair would be 67%",
    1 - shares[False][1] < 0.1 < 1 - shares[True][1],
)
assert shares[True][1] < shares[False][1]
# %% [es]
# ## Combinar samplers
#
# «DPM++ 2M combinado con LCMScheduler»: un pipeline tiene *un* scheduler, y asignar otro no combina
# nada, lo sustituye. ¿Y usar LCM con un modelo que no está destilado para él? LCM salta en cada
# paso a la imagen limpia y vuelve a echar ruido. Para medirlo con justicia, dos pruebas: la
# distancia al límite, con otros samplers que también añaden ruido al lado, y la dispersión que deja
# con datos gaussianos (1 es exacto, menos es una imagen aplanada), que se calcula sin ninguna red.
# %% [en]
# ## Combining samplers
#
# “DPM++ 2M combined with LCMScheduler”: a pipeline has *one* scheduler, and assigning another
# combines nothing, it replaces. And LCM on a model that was not distilled for it? In every step LCM
# jumps to the clean picture and adds noise again. To be fair, two tests: the distance to the limit,
# beside other samplers that add noise too, and the spread that it leaves on Gaussian data (1 is
# exact, less is a flattened picture), which is computed without a network.
# %%
from timonel.core.analysis import spreads

pipe.scheduler = compat.DPMSolverMultistepScheduler.from_config(own.config)
pipe.scheduler = compat.LCMScheduler.from_config(pipe.scheduler.config)
print(type(pipe.scheduler).__name__)
pipe.scheduler = own

names = ("dpmpp_2m/karras", "dpmpp_2m_sde/karras", "euler_ancestral/karras", "tcd/lcm", "lcm/lcm")
spread = {}
for name in names:
    spread[name] = float(
        spreads(tm.Sampler(name, steps=MANY).compile(tm.VP.from_schedule()), 0.5)[-1]
    )
    print(
        f"{name:24} {FEW}: {far(name, FEW):.3f}   {MANY}: {far(name, MANY):.3f}   spread {spread[name]:.2f}"
    )
display(
    strip(
        [first(made(name, MANY)) for name in names] + [first(limit)],
        [name.split("/")[0] for name in names] + ["limit"],
    )
)
verdict(
    f"«LCM da más realismo a un modelo normal»: con {MANY} pasos queda a {far('lcm/lcm', MANY):.2f} del límite "
    "(DPM++ 2M, a "
    f"{far('dpmpp_2m/karras', MANY):.3f}) y conserva el {spread['lcm/lcm']:.0%} de la dispersión",
    f"“LCM makes a normal model more realistic”: with {MANY} steps it is {far('lcm/lcm', MANY):.2f} from the limit "
    "(DPM++ "
    f"2M, {far('dpmpp_2m/karras', MANY):.3f}) and keeps {spread['lcm/lcm']:.0%} of the spread",
    far("lcm/lcm", MANY) < far("dpmpp_2m/karras", MANY),
    abs(spread["lcm/lcm"] - 1) < 0.05,
)
assert spread["lcm/lcm"] < spread["dpmpp_2m/karras"]


# %% [es]
# Lo que sí se puede es repartir el camino: un sampler hasta un nivel y otro desde ahí. Con el mismo
# en las dos mitades sale la imagen de siempre, señal de que el relevo no pierde nada.
# %% [en]
# What can be done is to share the way: one sampler down to a level, another from there. With the
# same one in both halves the result is the picture of a single run, a sign that nothing is lost in
# the relay.
# %%
def relay(one, two):
    told = {"guidance": 4.0, "seeds": [7], "output_type": "latent"}
    middle = helm(
        "red apple", sampler=tm.Sampler(one, grid="karras", steps=12, stop=6), **told
    ).images
    return helm(
        "red apple",
        sampler=tm.Sampler(two, grid="karras", steps=12, start=6),
        latents=middle,
        **told,
    ).images


whole = helm(
    "red apple", sampler="euler/karras", steps=12, guidance=4.0, seeds=[7], output_type="latent"
).images
relayed = {pair: relay(*pair) for pair in (("euler", "euler"), ("dpmpp_2m", "euler_ancestral"))}
print(f"euler + euler - euler: {rms(relayed['euler', 'euler'], whole):.1e}")
display(
    strip(
        [first(whole), *map(first, relayed.values())],
        ["euler", *(" + ".join(pair) for pair in relayed)],
        size=160,
    )
)
assert rms(relayed["euler", "euler"], whole) < 1e-4
# %% [es]
# ## ¿Cuál elijo?
#
# Las listas que circulan mezclan gustos («anime», «artístico») con hechos. Un hecho: *Euler
# ancestral* y los SDE añaden ruido nuevo, así que no se asientan en una imagen al dar más pasos.
# Otro: cada familia de modelos tiene los suyos, y un scheduler de flujo no sirve para un modelo que
# no lo es.
# %% [en]
# ## Which one do I choose?
#
# The lists that go around mix taste (“anime”, “artistic”) with facts. One fact: *Euler ancestral*
# and the SDE samplers add fresh noise, so they do not settle on a picture as steps are added.
# Another: every family of models has its own, and a flow scheduler is no good for a model that is
# not a flow.
# %%
settles = {
    name: rms(made(name, FEW), made(name, MANY))
    for name in ("euler/karras", "euler_ancestral/karras", "dpmpp_2m/karras", "dpmpp_2m_sde/karras")
}
for name, change in settles.items():
    print(f"{name:24} {FEW} - {MANY}: {change:.3f}")
print(attempt(lambda: compat.FlowMatchEulerDiscreteScheduler.from_config(own.config)))
candidates = [
    "euler/leading",
    "euler/ays",
    "dpmpp_2m/karras",
    "dpmpp_2m/ays",
    "dpmpp_2m_sde/karras",
    "unipc/karras",
    "unipc/ays",
]
ranking = sorted(candidates, key=lambda name: far(name, FEW))
print(*(f"{far(name, FEW):.3f} {name}" for name in ranking), sep="\n")
verdict(
    f"«DPM++ 2M SDE Karras, el mejor general»: con {FEW} pasos queda {ranking.index('dpmpp_2m_sde/karras') + 1}.º de "
    f"{len(ranking)} por cercanía al límite; el primero es {ranking[0]}",
    f"“DPM++ 2M SDE Karras, the best all-rounder”: with {FEW} steps it comes "
    f"{ranking.index('dpmpp_2m_sde/karras') + 1} of "
    f"{len(ranking)} by closeness to the limit; first is {ranking[0]}",
    ranking[0] == "dpmpp_2m_sde/karras",
)
# %% [es]
# La cercanía al límite no es lo único: el ruido nuevo de un SDE también puede corregir errores del
# modelo, y a mucha gente le gusta lo que hace con 30 pasos o más. La comparación completa, con 40
# samplers, está en [¿Qué sampler?](../which-sampler.md) (en inglés).
#
# ## Con vídeo: la receta de SVD
#
# «Para SVD: DPM++ 2M SDE + Karras + trailing.» En SVD el tiempo que se le dice a la red no va de
# 999 a 0: es un cuarto del logaritmo de sigma.
# %% [en]
# Closeness to the limit is not everything: the fresh noise of an SDE may also mend errors of the
# model, and many people like what it does with 30 steps or more. The full comparison, of 40
# samplers, is in [Which sampler?](../which-sampler.md).
#
# ## With video: the SVD recipe
#
# “For SVD: DPM++ 2M SDE + Karras + trailing.” In SVD the time that the network is told does not go
# from 999 to 0: it is a quarter of the logarithm of sigma.
# %% [include _video]
# %%
from timonel.core.process import from_config

RECIPE = {
    "algorithm_type": "sde-dpmsolver++",
    "use_karras_sigmas": True,
    "timestep_spacing": "trailing",
}
video_own = video_pipe.scheduler


def with_recipe(package):
    """How the recipe ends, and the times that the network was told."""
    video_times.clear()
    video_pipe.scheduler = package.DPMSolverMultistepScheduler.from_config(
        video_own.config, **RECIPE
    )
    try:
        ended = attempt(lambda: "ok" if video_pipe(**VIDEO, num_inference_steps=8).frames else "")
    finally:
        video_pipe.scheduler = video_own
    return ended, [round(t, 2) for t in video_times]


theirs, ours = with_recipe(diffusers), with_recipe(compat)
print("diffusers:", *theirs)
print("compat:   ", *ours)
levels = from_config(video_own.config)
table = tm.Sampler("dpmpp_2m_sde/karras", steps=8).compile(levels)
right = [
    round(0.25 * float(torch.log(sigma / alpha)), 2)
    for alpha, sigma in zip(table.alpha[:-1], table.sigma[:-1], strict=True)
]
verdict(
    f"«la receta para SVD» en diffusers: acaba en `{theirs[0].split(':')[0]}`, y de los tiempos que dice a la red son "
    f"correctos {sum(t == r for t, r in zip(theirs[1], right, strict=False))} de 8; la misma receta con timonel, "
    f"{sum(t == r for t, r in zip(ours[1], right, strict=True))} de 8",
    f"“the recipe for SVD” in diffusers: it ends in `{theirs[0].split(':')[0]}`, and of the times it tells the network "
    f"{sum(t == r for t, r in zip(theirs[1], right, strict=False))} of 8 are right; the same recipe with timonel, "
    f"{sum(t == r for t, r in zip(ours[1], right, strict=True))} of 8",
    theirs[0] == "ok" and theirs[1] == right,
)
assert ours == ("ok", right)
# %% [es]
# Con `Helm` la receta es un nombre, y AYS tiene sus diez niveles para SVD. Cualquier sampler vale;
# el tiempo que recibe la red siempre es el suyo. Si SVD se queda corto de memoria al decodificar,
# `decode_chunk_size=2`.
# %% [en]
# With `Helm` the recipe is a name, and AYS has its ten levels for SVD. Any sampler will do; the
# time that the network is told is always the right one. Where SVD runs out of memory when it
# decodes, `decode_chunk_size=2`.
# %%
for sampler in ("dpmpp_2m_sde/karras", "dpmpp_2m/ays_svd"):
    video_times.clear()
    frames = video_helm(
        **VIDEO,
        sampler=sampler,
        steps=10,
        seeds=[3],
        guidance=tm.cfg(until=0.4),
        decode_chunk_size=2,
    ).frames[0]
    print(
        f"{sampler:20}", *(f"{t:.2f}" for t in video_times), f"  {len(frames)} x {frames[0].size}"
    )
    assert len(video_times) == 10
ratios = (video_helm.run.table.sigma / video_helm.run.table.alpha)[:-1].tolist()
assert all(
    abs(a - b) < 1e-3 * b
    for a, b in zip(ratios, compat.AysSchedules["StableDiffusionVideoSigmas"], strict=False)
)
# %% [es]
# ## Para llevarse
#
# | quieres | escribe |
# |---|---|
# | otro sampler | `helm(..., sampler="dpmpp_2m/karras", steps=10)` |
# | lo mismo en tu script | `from timonel.compat import DPMSolverMultistepScheduler` |
# | pocos pasos | `"dpmpp_2m/ays"`, y mide con tu modelo |
# | tus niveles | `tm.Sampler("dpmpp_2m", sigmas=[...])` o `times=[...]` |
# | ver qué hace | `print(tm.Sampler(...).compile(proceso))`, `timonel explain` |
# | repartir el camino | `tm.Sampler(..., stop=6)` y `tm.Sampler(..., start=6)` |
#
# El otro tutorial, *Al timón*, va de mirar, parar y retocar mientras se genera.
# %% [en]
# ## To take away
#
# | you want | write |
# |---|---|
# | another sampler | `helm(..., sampler="dpmpp_2m/karras", steps=10)` |
# | the same in your script | `from timonel.compat import DPMSolverMultistepScheduler` |
# | few steps | `"dpmpp_2m/ays"`, and measure with your model |
# | your own levels | `tm.Sampler("dpmpp_2m", sigmas=[...])` or `times=[...]` |
# | to see what it does | `print(tm.Sampler(...).compile(process))`, `timonel explain` |
# | to share the way | `tm.Sampler(..., stop=6)` and `tm.Sampler(..., start=6)` |
#
# The other tutorial, *At the helm*, is about watching, stopping and retouching while it goes.
