# %% [es]
# El modelo se elige en una sola línea. Con una GPU, `VIDEO_MODEL =
# "stabilityai/stable-video-diffusion-img2vid-xt"` y el tamaño de verdad, 1024x576 con 25
# fotogramas. Para que esto corra en cualquier sitio, aquí usamos `emoji-video`, que viene con
# timonel: la misma clase, `StableVideoDiffusionPipeline`, con la configuración de ruido de SVD y
# las mismas condiciones, pero con 8 fotogramas de 64x64. Su vídeo más limpio es el que hace sin
# guía, el de aquí; más abajo la encendemos solo para ver qué hace.
# %% [en]
# The model is chosen in one line. With a GPU, `VIDEO_MODEL =
# "stabilityai/stable-video-diffusion-img2vid-xt"` and its real size, 1024x576 with 25 frames. So
# that this runs anywhere, we use `emoji-video` here, which ships with timonel: the same class,
# `StableVideoDiffusionPipeline`, with SVD's noise configuration and the same conditions, but with 8
# frames of 64x64. Its cleanest video is the one without guidance, shown here; below we switch
# guidance on only to see what it does.
# %%
VIDEO_MODEL = "emoji-video"
VIDEO = {"height": 64, "width": 64, "num_frames": 8}

video_helm = tm.Helm(VIDEO_MODEL)
video_pipe = video_helm.pipe
video_pipe.set_progress_bar_config(disable=True)
video_times, video_samples = watched(video_pipe)
VIDEO["image"] = (
    helm("red apple", steps=8, seeds=[7], guidance=4.0)
    .images[0]
    .resize((VIDEO["width"], VIDEO["height"]))
)
clip = video_helm(**VIDEO, steps=10, seeds=[1], guidance=1.0, motion_bucket_id=60).frames[0]
display(strip([VIDEO["image"], *clip], ["image", *range(1, len(clip) + 1)], size=88, across=9))
assert len(clip) == VIDEO["num_frames"]
