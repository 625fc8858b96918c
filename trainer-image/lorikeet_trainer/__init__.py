"""The trainer: reads a run's contract, trains, evaluates and publishes.

`supervisor` is PID 1 of the pod and starts the stages `prepare`, `probe` and `train` (one process a rank) and `publish`
one after the other, each in a process of its own; `probe` only where the micro batch is to be found.
"""
