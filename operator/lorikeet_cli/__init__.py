"""The command `lorikeet` (and `kubectl lorikeet`): runs, checks and follows fine-tuning from a terminal.

One file a subcommand. Without a cluster: `run`, `validate`, `data preview`; with one, by the user's own `kubectl`:
`watch`, `logs`, `report`.
"""
