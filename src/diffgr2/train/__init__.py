"""Training: one loop for every stage, checkpoints, distribution, metrics log.

Contract: a stage builds a `loop.Task` and calls `loop.fit`; all that makes a run resumable,
bit-identical and safe to kill lives here. Not here: any stage's data, rollouts or loss.
"""
