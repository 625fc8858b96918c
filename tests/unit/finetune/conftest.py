"""The cluster with one request in it, for all tests here."""

from tests.unit.finetune.test_reconcile import checked, running, world

__all__ = ["checked", "running", "world"]
