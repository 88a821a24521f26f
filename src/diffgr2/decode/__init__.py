"""Decoders: AR, block diffusion and verified block diffusion, over one batching engine.

`batch.decode` is the one decode path of evaluation, rollouts and serving. Nothing here knows a
stage, a template or a file format.
"""
