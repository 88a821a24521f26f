"""Decoders: AR, block diffusion and verified block diffusion, over one batching engine.

`engine.decode` is the one decode path of evaluation, rollouts and serving (DESIGN §4). Nothing here
knows a stage, a template or a file format.
"""
