"""Any diffusers pipeline at the helm, through three sockets that every pipeline already has.

scheduler.py   `pipe.scheduler` is a `Scheduler`; its `step` advances the run
timesteps.py   `scheduler.timesteps` is a tensor whose iteration is driven by the run
gate.py        a hook on the network: skips the unconditional half, applies guidance
decode.py      latents to pictures, for previews
helm.py        puts the sockets in, runs the pipeline, takes them out
"""
