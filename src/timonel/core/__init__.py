"""The core: samplers as tables, and runs of them. Needs torch, numpy, safetensors and pydantic
only.
"""
