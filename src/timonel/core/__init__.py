"""The core: samplers as tables, and runs of them.

It needs torch, numpy, safetensors and pydantic only.
"""
