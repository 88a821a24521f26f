"""Checkpoints that other engines serve: one module per format, `writing` is the way in."""
