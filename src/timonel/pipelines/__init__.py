"""Any diffusers pipeline at the helm, through what its own loop asks for.

sockets    `pipe.scheduler` and the list of its timesteps, driven by a run
guidance   the gate around its networks: guidance, and turns that only repeat
network    who uses a network now, and what it remembers
classes    what diffusers' scheduler classes stand for, as rows of a table
family     what is known of a pipeline's family, and recommended for it
decode     latents to pictures, by the rest of the pipeline's own call
recipe     what a picture holds of the call that made it

`helm.py` checks and chooses, `call.py` makes the call, `session.py` is its state, `capture.py`
takes the network out of the loop.
"""
