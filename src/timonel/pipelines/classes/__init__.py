"""What diffusers' scheduler classes stand for, as data: sampler, levels and flags of each class.

`rows.CLASSES` has a row for each class; `config` reads a config by it, `levels` makes its list and
`tables` its table. The helm's choice of a sampler and `timonel.compat` both follow these rows.
"""
