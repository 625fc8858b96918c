"""Talking to Kubernetes: client, cache, keyed queue, writes, events. Knows no resource of ours."""
