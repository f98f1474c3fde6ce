"""The networks of a pipeline under guidance: which calls are conditional, and what is left out."""
