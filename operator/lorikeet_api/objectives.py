"""What a run optimises, and which methods and data go with it."""

from typing import Annotated, Final, Literal, Self, get_args

from pydantic import Field, model_validator

from lorikeet_api.base import Model, cel, exactly_one
from lorikeet_api.rlhf import Rlhf
from lorikeet_api.signs import SignName, fails_on
from lorikeet_api.training import FORMAT_COLUMNS, Columns, Dataset, Method, Training

ObjectiveName = Literal["sft", "dpo", "kto", "orpo", "reward", "rlhf"]

OBJECTIVE_FORMATS: Final[dict[ObjectiveName, tuple[str, ...]]] = {
    "sft": ("instruction", "chat", "completion", "text"),
    "dpo": ("preference",),
    "kto": ("feedback",),
    "orpo": ("preference",),
    "reward": ("preference",),
    "rlhf": ("prompt",),
}
"""The formats that each objective learns from."""


class Sft(Model):
    """Supervised fine-tuning on examples (TRL: SFTTrainer)."""

    neftune_alpha: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Strength of noise on the embeddings while training, such as 5, which makes a model repeat its examples less
    (NEFTune, arXiv:2310.05914; TRL: `neftune_noise_alpha`). Absent: none."""


PositiveWeight = Annotated[float, Field(gt=0, le=1000)]
_SMOOTHED: Final = "robust"
_SMOOTHING: Final = f"labelSmoothing belongs to loss {_SMOOTHED}, and {_SMOOTHED} needs it: set both or neither"


class Dpo(Model):
    """Direct preference optimisation: make chosen answers likelier than rejected ones, measured against the model as it
    is before training (arXiv:2305.18290; TRL: DPOTrainer). Dropout is off."""

    beta: PositiveWeight = 0.1
    """How strongly the model is held to what it was: higher, closer (TRL: `beta`)."""
    loss: Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down"] = "sigmoid"
    """Loss over a pair (TRL: `loss_type`): `sigmoid`, DPO's own; `hinge` (arXiv:2305.10425); `ipo` (arXiv:2310.12036);
    `robust`, for labels of which some are wrong (arXiv:2403.00409); `apo_zero`, where chosen answers are better than
    the model's own, and `apo_down`, where they are worse (arXiv:2408.06266)."""
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    """Share of the labels that are taken to be wrong, for loss `robust` (TRL: `label_smoothing`)."""

    @model_validator(mode="after")
    def _smoothing_has_its_loss(self) -> Self:
        if (self.label_smoothing is not None) != (self.loss == _SMOOTHED):
            raise ValueError(_SMOOTHING)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_smoothing_has_its_loss` for the API server."""
        return [cel(f"has(self.labelSmoothing) == (has(self.loss) && self.loss == '{_SMOOTHED}')", _SMOOTHING)]


class Kto(Model):
    """Learn from answers that are each called good or bad (arXiv:2402.01306; TRL: KTOTrainer). Dropout is off."""

    beta: PositiveWeight = 0.1
    """How strongly the model is held to what it was before training: higher, closer (TRL: `beta`)."""
    desirable_weight: PositiveWeight = 1.0
    """Weight of the good answers' losses; for few good ones among many bad ones, more (TRL: `desirable_weight`)."""
    undesirable_weight: PositiveWeight = 1.0
    """Weight of the bad answers' losses (TRL: `undesirable_weight`)."""


class Orpo(Model):
    """Supervised fine-tuning on chosen answers with a penalty for likely rejected ones, in one step and without a
    reference (arXiv:2403.07691). Experimental: its place among the methods is not settled."""

    beta: PositiveWeight = 0.1
    """Weight of the penalty, the paper's lambda (TRL: `beta`)."""


class Reward(Model):
    """Train a model that gives an answer a number, from pairs of which one is better (TRL: RewardTrainer). Dropout is
    off. No engine serves the result."""

    center: Annotated[float, Field(gt=0, le=1)] | None = None
    """Weight of a penalty that holds the mean reward at nothing, such as 0.01 (arXiv:2312.09244; TRL:
    `center_rewards_coefficient`). Absent: none."""


class Objective(Model):
    """What the run optimises: exactly one objective."""

    sft: Sft | None = None
    """Supervised fine-tuning: next-token loss on the tokens that `dataset.trainOn` names."""
    dpo: Dpo | None = None
    """Direct preference optimisation, on preference rows."""
    kto: Kto | None = None
    """Kahneman-Tversky optimisation, on feedback rows."""
    orpo: Orpo | None = None
    """Odds-ratio preference optimisation, on preference rows. Experimental."""
    reward: Reward | None = None
    """A reward model, from preference rows."""
    rlhf: Rlhf | None = None
    """Policy optimisation by rewards, on prompts."""

    @model_validator(mode="after")
    def _one_arm(self) -> Self:
        if sum(getattr(self, arm) is not None for arm in Objective.model_fields) != 1:
            raise ValueError(f"give exactly one objective: {', '.join(Objective.model_fields)}")
        return self

    @property
    def name(self) -> ObjectiveName:
        """The chosen arm's name."""
        names: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
        return next(name for name in names if getattr(self, name) is not None)

    @property
    def columns(self) -> list[str]:
        """The columns beside the format's that the rewards of rlhf read."""
        return self.rlhf.columns if self.rlhf is not None else []

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_one_arm` for the API server."""
        return [exactly_one(Objective, "objective")]


def misfits(method: Method | None, dataset: Dataset, objective: Objective) -> str | None:
    """Return why method (if it is given), data and objective do not go together, or None if they do."""
    name = objective.name
    if name == "reward" and dataset.general is not None:
        return _WRITES_NOTHING
    if dataset.format != "auto" and dataset.format not in OBJECTIVE_FORMATS[name]:
        return _format_misfit(name)
    if dataset.columns is not None and any(getattr(dataset.columns, role) is not None for role in _foreign(name)):
        return _columns_misfit(name)
    if objective.sft is not None:
        return _NOISE if objective.sft.neftune_alpha is not None and dataset.packing else None
    if dataset.train_on is not None:
        return _TRAIN_ON
    if dataset.packing is not None:
        return _PACKING
    if name == "rlhf" and dataset.overlong == "truncate":
        return _CUT_PROMPT
    if method is None:
        return None
    if method.bottleneck is not None:
        return _BOTTLENECK
    if method.lora is not None and method.lora.init != "default":
        return _INIT
    return None


def misfit_rules() -> list[dict[str, str]]:
    """Return the rules of `misfits` for the API server, over a spec with all three."""
    supervised = "!has(self.objective) || has(self.objective.sft)"
    rules = [
        cel(
            "!has(self.objective) || !has(self.objective.reward) || !has(self.dataset.general)",
            _WRITES_NOTHING,
        ),
        cel(f"{supervised} || !has(self.dataset.trainOn)", _TRAIN_ON),
        cel(f"{supervised} || !has(self.dataset.packing)", _PACKING),
        cel(
            "!has(self.dataset.packing) || !self.dataset.packing || !has(self.objective) || !has(self.objective.sft)"
            " || !has(self.objective.sft.neftuneAlpha)",
            _NOISE,
        ),
        cel(
            "!has(self.objective) || !has(self.objective.rlhf) || !has(self.dataset.overlong)"
            " || self.dataset.overlong != 'truncate'",
            _CUT_PROMPT,
        ),
        cel(f"{supervised} || !has(self.method) || !has(self.method.bottleneck)", _BOTTLENECK),
        cel(
            f"{supervised} || !has(self.method) || !has(self.method.lora) || !has(self.method.lora.init)"
            " || self.method.lora.init == 'default'",
            _INIT,
        ),
    ]
    for name, formats in OBJECTIVE_FORMATS.items():
        other = supervised if name == "sft" else f"has(self.objective) && has(self.objective.{name})"
        listed_formats = ", ".join(f"'{one}'" for one in ("auto", *formats))
        known = f"!has(self.dataset.format) || self.dataset.format in [{listed_formats}]"
        rules.append(cel(f"!({other}) || {known}", _format_misfit(name)))
        absent = " && ".join(f"!has(self.dataset.columns.{role})" for role in _foreign(name))
        rules.append(cel(f"!({other}) || !has(self.dataset.columns) || ({absent})", _columns_misfit(name)))
    return rules


def unseen(objective: Objective, training: Training) -> str | None:
    """Return why a sign that is to end the run is never seen with its objective, or None if all may be."""
    name = _UNSEEN.get(objective.name)
    return _unseen(objective.name, name) if name is not None and name in training.fails_on else None


def unseen_rules() -> list[dict[str, str]]:
    """Return the rules of `unseen` for the API server, over a spec."""
    return [
        cel(
            f"!has(self.objective) || !has(self.objective.{objective}) || !has(self.training) || !({fails_on(name)})",
            _unseen(objective, name),
        )
        for objective, name in _UNSEEN.items()
    ]


def unshared(objective: Objective, batch_size: int | None) -> str | None:
    """Return why the answers of a step cannot be shared out over prompts, or None if they can."""
    rlhf = objective.rlhf
    return _UNSHARED if rlhf is not None and batch_size is not None and batch_size % rlhf.num_generations else None


def unshared_rule() -> dict[str, str]:
    """Return the rule of `unshared` for the API server, over a spec."""
    given = "has(self.objective) && has(self.objective.rlhf) && has(self.training) && has(self.training.batchSize)"
    even = f"self.training.batchSize % ({_GENERATIONS}) == 0"
    return cel(f"!({given}) || {even}", _UNSHARED)


_UNSEEN: Final[dict[ObjectiveName, SignName]] = {"rlhf": "Overfitting", "reward": "Repetition"}
"""The sign that is not to be seen with an objective: its training loss says nothing; its model answers nothing."""


def _unseen(objective: ObjectiveName, name: SignName) -> str:
    return f"training.signs.failOn {name}: objective {objective} does not show that sign, remove it"


def unmeasured(dataset: Dataset, training: Training) -> str | None:
    """Return why a sign that is to end the run cannot be looked for, or None if each can; the profile's defaults are
    filled in."""
    return _UNMEASURED if "Forgetting" in training.fails_on and dataset.general is None else None


def _roles(name: ObjectiveName) -> list[str]:
    """Return the columns that an objective's rows can have."""
    return list(dict.fromkeys(role for one in OBJECTIVE_FORMATS[name] for role in FORMAT_COLUMNS[one]))


def _foreign(name: ObjectiveName) -> list[str]:
    return [role for role in Columns.model_fields if role not in _roles(name)]


def _columns_misfit(name: ObjectiveName) -> str:
    return f"rows of objective {name} have only the columns {', '.join(_roles(name))}"


def _format_misfit(name: ObjectiveName) -> str:
    return f"objective {name} learns from rows of the format {' or '.join(OBJECTIVE_FORMATS[name])}, or auto"


_UNSHARED: Final = (
    "training.batchSize counts the answers of a step, numGenerations to each prompt: make it a multiple of"
    " objective.rlhf.numGenerations"
)
_GENERATIONS: Final = (
    "has(self.objective.rlhf.numGenerations) ? self.objective.rlhf.numGenerations"
    f" : {Rlhf.model_fields['num_generations'].default}"
)
_UNMEASURED: Final = (
    "training.signs.failOn has Forgetting, which is measured on a general set, and there is none: set dataset.general,"
    " or remove Forgetting"
)
_WRITES_NOTHING: Final = (
    "a reward model writes nothing, so there is no loss of it on a general set: remove dataset.general"
)
_TRAIN_ON: Final = "dataset.trainOn is for objective sft, the others look at the answers alone: remove it"
_PACKING: Final = "dataset.packing is for objective sft: remove it"
_NOISE: Final = (
    "objective.sft.neftuneAlpha sets noise by the length of an example, which dataset.packing hides: remove one of them"
)
_CUT_PROMPT: Final = "a prompt that is cut at its end asks for nothing: set dataset.overlong to drop or fail"
_BOTTLENECK: Final = "method bottleneck is for objective sft: choose lora, qlora or full"
_INIT: Final = "method.lora.init pissa and olora are for objective sft: leave init out"
