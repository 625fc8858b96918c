"""A real single-node Kubernetes on a bare Linux machine, inside namespaces of its own.

``python -m e2e.cluster up`` brings it up, ``down`` takes it down and leaves nothing behind.
"""
