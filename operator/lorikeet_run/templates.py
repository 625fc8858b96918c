"""What a run's chat template is called, wherever people read of it."""

from typing import Final

TEMPLATES: Final = {
    "base": "the base model's own chat template",
    "lorikeet": "Lorikeet's chat template, as the base model has none",
    "none": "no chat template: the texts are plain",
}
"""By `lorikeet_api.contract.Template.source`."""
