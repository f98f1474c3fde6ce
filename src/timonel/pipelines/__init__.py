"""Any diffusers pipeline at the helm, through three sockets that every pipeline already has.

scheduler.py   `pipe.scheduler` is a `Scheduler`; its `step` advances the run
timesteps.py   `scheduler.timesteps` is a tensor whose iteration is driven by the run
gate.py        wraps the network: skips the unconditional parts, applies guidance
batch_tree.py  which parts of a guided call are which
scale.py       which argument of a pipeline holds the guidance scale
fits.py        what is checked before anything is computed
decode.py      latents to pictures, for previews and stopped runs
helm.py        puts the sockets in, runs the pipeline, takes them out
handle.py      a call in the background
"""
