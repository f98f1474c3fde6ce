"""Samplers fitted to a model, and the record of the fit."""
