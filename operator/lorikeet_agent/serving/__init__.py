"""The agent beside an engine: fetches adapters, verifies them, and has the engine of its own pod load them.

`holder` is the loop that brings the engine from what it serves to what is wanted, `server` says how it stands. Before
the engine starts, `base` fetches its model; before there is any pod, `resolve` finds out what URIs mean.
"""
