"""Runs that are initialized from pretrained weights.

The weights are those of config.init (a discriminator and its generator) or of config.generator.init
(a generator beside a new discriminator): of transformers, of the original program, or of a run.
In this order: `source` opens them, `sizes` takes the sizes of the model from them, `tokens`
compares their vocabulary with that of the rows, and `initial_state` makes the parameters of the
run.
"""
