"""Samplers that were fitted to a model, and what is kept of the fit."""
