"""The hooks of timonel: they show, keep, check and change a run. Their base is `core.hook`."""
