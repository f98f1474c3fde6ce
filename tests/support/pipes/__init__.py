"""Pipelines of the real diffusers classes with tiny random networks, and what the helm does with
each.

standins.py   tokenizers, text encoders and image encoders that only have to be called
registry.py   a pipeline class, how it is built, how it is called
nets.py       tiny autoencoders, UNets and schedulers that several families share
the rest      the families, one table entry for each pipeline class
features.py   what is tried under the helm with each pipeline
worker.py     runs the features in one subprocess at a time
page.py       the table docs/pipelines.md
"""

from .registry import CASES, Case, load

__all__ = ["CASES", "Case", "load"]
