# %% [es]
# El modelo se elige en una sola línea. Con una GPU, `VIDEO_MODEL = "stabilityai/stable-video-diffusion-img2vid-xt"` y
# el tamaño de verdad, 1024x576 con 25 fotogramas. Para que esto corra en cualquier sitio, aquí usamos un doble: la
# misma clase, `StableVideoDiffusionPipeline`, con la configuración de ruido de SVD pero con una red diminuta de pesos
# al azar. Sus vídeos no enseñan nada; las veces que trabaja la red, lo que se le dice y los tamaños sí son los de SVD.
# %% [en]
# The model is chosen in one line. With a GPU, `VIDEO_MODEL = "stabilityai/stable-video-diffusion-img2vid-xt"` and its
# real size, 1024x576 with 25 frames. So that this runs anywhere, we use a stand-in here: the same class,
# `StableVideoDiffusionPipeline`, with SVD's noise configuration but a tiny network of random weights. Its videos show
# nothing; how often the network works, what it is told and the sizes are those of SVD.
# %%
import diffusers
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

VIDEO_MODEL = "stand-in"
VIDEO = {"height": 32, "width": 32, "num_frames": 4}


def stand_in():
    """A StableVideoDiffusionPipeline with SVD's scheduler configuration and small random weights."""
    torch.manual_seed(0)
    network = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, num_attention_heads=(4, 8),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        projection_class_embeddings_input_dim=96, addition_time_embed_dim=32,
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
    )
    eyes = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=56,
        image_size=224, projection_dim=32,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(  # as in SVD's own scheduler_config.json
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        sigma_min=0.002, sigma_max=700.0, timestep_type="continuous", use_karras_sigmas=True, steps_offset=1,
        timestep_spacing="leading",
    )  # fmt: skip
    return diffusers.StableVideoDiffusionPipeline(
        vae=autoencoder.eval(), unet=network.eval(), scheduler=scheduler, feature_extractor=CLIPImageProcessor(),
        image_encoder=CLIPVisionModelWithProjection(eyes).eval(),
    )  # fmt: skip


video_helm = tm.Helm(stand_in() if VIDEO_MODEL == "stand-in" else VIDEO_MODEL)
video_pipe = video_helm.pipe
video_pipe.set_progress_bar_config(disable=True)
video_times, video_samples = watched(video_pipe)
VIDEO["image"] = helm("red apple", steps=8, seeds=[7]).images[0].resize((VIDEO["width"], VIDEO["height"]))
