"""Latents to pictures, as the pipeline itself does it."""
