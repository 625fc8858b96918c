"""Hyperparameters by method and objective: one table, printed in the CRD and resolved into status.

A static CRD default cannot depend on the method, and values that suit LoRA would wreck a full
fine-tune, so these are resolved by the operator when the job starts.
"""

import math
from typing import Any, Final

from lorikeet_api.base import Model
from lorikeet_api.objectives import ObjectiveName
from lorikeet_api.training import Checkpoints, Method, MethodName, Training

_COMMON: Final = Training(
    batch_size=16,
    warmup_ratio=0.03,
    weight_decay=0.0,
    scheduler="cosine",
    max_grad_norm=1.0,
    seed=42,
    logging_steps=10,
    checkpoints=Checkpoints(),
)

_LEARNING_RATES: Final[dict[ObjectiveName, dict[MethodName, float]]] = {
    "sft": {"lora": 2e-4, "qlora": 2e-4, "bottleneck": 1e-4, "full": 1e-5},
    "dpo": {"lora": 5e-6, "qlora": 5e-6, "full": 1e-6},
    "kto": {"lora": 5e-6, "qlora": 5e-6, "full": 1e-6},
    "orpo": {"lora": 8e-6, "qlora": 8e-6, "full": 5e-6},
    "reward": {"lora": 1e-4, "qlora": 1e-4, "full": 1e-5},
    "rlhf": {"lora": 1e-5, "qlora": 1e-5, "full": 1e-6},
}
_EPOCHS: Final[dict[ObjectiveName, float]] = {
    "sft": 3.0,
    "dpo": 1.0,
    "kto": 1.0,
    "orpo": 1.0,
    "reward": 1.0,
    "rlhf": 1.0,
}

DEFAULTS: Final[dict[tuple[MethodName, ObjectiveName], Training]] = {
    (method, objective): _COMMON.model_copy(update={"learning_rate": rate, "epochs": _EPOCHS[objective]})
    for objective, rates in _LEARNING_RATES.items()
    for method, rate in rates.items()
}
"""Every field that a run needs, by (method, objective)."""

TYPICAL_ADAPTER: Final[dict[str, tuple[float, float]]] = {"rank": (4, 128), "dropout": (0.0, 0.2)}
TYPICAL_TRAINING: Final[dict[str, tuple[float, float]]] = {"epochs": (1, 5), "batch_size": (4, 256)}
LEARNING_RATE_FACTOR: Final = 5.0


def describe(field: str) -> str | None:
    """Return a field's defaults as a sentence for its description, or None if the table has none."""
    values: dict[Any, list[str]] = {}
    for (method, objective), training in DEFAULTS.items():
        value = getattr(training, field)
        if value is not None and not isinstance(value, Model):  # a model's fields have defaults of their own
            values.setdefault(value, []).append(f"{method} {objective}")
    if not values:
        return None
    if len(values) == 1:
        return f"Default: {next(iter(values))}."
    return "Default: " + ", ".join(f"{value} ({', '.join(where)})" for value, where in values.items()) + "."


def unusual(method: Method, objective: ObjectiveName, training: Training) -> list[str]:
    """Return a warning for each value outside the range in which such runs usually work."""
    warnings = []
    usual_rate = DEFAULTS[method.name, objective].learning_rate
    if training.learning_rate is not None and usual_rate is not None:
        low, high = usual_rate / LEARNING_RATE_FACTOR, usual_rate * LEARNING_RATE_FACTOR
        if not low <= training.learning_rate <= high:
            warnings.append(
                f"learningRate {training.learning_rate:g} is unusual for {method.name} {objective}"
                f" (typical: {low:g} to {high:g})"
            )
    early, epochs = training.early_stopping, training.epochs
    if early is not None and training.eval_steps is None and epochs is not None:
        # One after each epoch but the last, whose evaluation is the end's.
        evaluations = math.ceil(epochs) - 1
        if evaluations <= early.patience:
            warnings.append(
                f"earlyStopping ends nothing: it waits for {early.patience} evaluations after the lowest, and there are"
                f" {evaluations} on the way, one an epoch; set training.evalSteps"
            )
    checked: list[tuple[object, dict[str, tuple[float, float]]]] = [(training, TYPICAL_TRAINING)]
    if method.adapter is not None:
        checked.append((method.adapter, TYPICAL_ADAPTER))
    for model, ranges in checked:
        for field, (low, high) in ranges.items():
            value = getattr(model, field)
            if value is not None and not low <= value <= high:
                alias = type(model).model_fields[field].alias or field  # type: ignore[attr-defined]
                warnings.append(f"{alias} {value:g} is unusual (typical: {low:g} to {high:g})")
    return warnings
