"""Streaming access to S3, the hub, mounted claims and folders in their place, and the atomic publishing of what a run
made.

The functions to call: `survey_model` and `survey_data` look at a source and pin it, `fetch_model` and `fetch_data`
bring its files into a folder and digest them, `find_published`, `find_run` and `check_free` look at an output before a
run, `leave_file` writes to it on the way and `publish` after the run, `run_place` says where, `Checkpoints` keeps what
a run goes on from, `TokenSets` the data as tokens until then. All raise `StorageError` and nothing else,
whose reason is one of `lorikeet_api.conditions.TrainerReason`.
"""

from lorikeet_storage.checkpoints import Checkpoints
from lorikeet_storage.errors import StorageError
from lorikeet_storage.fetch import (
    Fetched,
    Survey,
    fetch_data,
    fetch_description,
    fetch_model,
    is_description,
    survey_data,
    survey_model,
)
from lorikeet_storage.publish import (
    Published,
    check_free,
    find_published,
    find_run,
    leave_file,
    publish,
    remove_run,
    run_place,
)
from lorikeet_storage.tokens import TokenSets

__all__ = [
    "Checkpoints",
    "Fetched",
    "Published",
    "StorageError",
    "Survey",
    "TokenSets",
    "check_free",
    "fetch_data",
    "fetch_description",
    "fetch_model",
    "find_published",
    "find_run",
    "is_description",
    "leave_file",
    "publish",
    "remove_run",
    "run_place",
    "survey_data",
    "survey_model",
]
