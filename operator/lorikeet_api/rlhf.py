"""Objective rlhf: how a policy is optimised, and what its answers are rewarded for."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from lorikeet_api.base import Model, NameReference, S3Uri, Sha256, cel, listed
from lorikeet_api.training import ColumnName

_ONE_RUN: Final = "give exactly one of uri and fineTuneJobRef"
_NO_REWARD: Final = "give at least one reward: model, regex, jsonSchema or match"
_PIN_OF_URI: Final = "sha256 pins a uri: remove it, or name the uri"


class RewardModel(Model):
    """A reward model that a FineTuneJob of objective reward has published: exactly one of `uri` and `fineTuneJobRef`.
    It must have the tokenizer of the model that is trained."""

    uri: S3Uri | None = None
    """The folder of the run that has published it: `<output>/<runId>`."""
    sha256: Sha256 | None = None
    """sha256 of the manifest, to take just that content of `uri`. Absent: what is there when the run is checked."""
    fine_tune_job_ref: NameReference | None = None
    """A FineTuneJob of the same namespace. This one waits until it has succeeded, and takes just what it has
    published."""

    @model_validator(mode="after")
    def _checks(self) -> Self:
        if (self.uri is None) == (self.fine_tune_job_ref is None):
            raise ValueError(_ONE_RUN)
        if self.sha256 is not None and self.uri is None:
            raise ValueError(_PIN_OF_URI)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rules of `_checks` for the API server."""
        return [
            cel("has(self.uri) != has(self.fineTuneJobRef)", _ONE_RUN),
            cel("!has(self.sha256) || has(self.uri)", _PIN_OF_URI, fieldPath=".sha256"),
        ]


class Regex(Model):
    """1 for an answer in which a regular expression is found, else 0."""

    pattern: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    """The expression, in the syntax of Rust's regex: as RE2, without look-around and backreferences, so that none takes
    long. `^` and `$` are the ends of the answer, white space around it left out."""


class Match(Model):
    """1 for an answer that is what a column of the prompt's row holds, else 0; white space around both left out."""

    column: ColumnName
    """Column of the expected answer: text, a number, true or false. Every row needs it."""


_ARMS: Final = ("model", "regex", "jsonSchema", "match")
_ONE_ARM: Final = f"give exactly one reward: {', '.join(_ARMS)}"


class RewardSource(Model):
    """One reward: exactly one of model, regex, jsonSchema and match."""

    model: RewardModel | None = None
    """The number that a reward model gives the answer."""
    regex: Regex | None = None
    """Whether a regular expression is found in the answer."""
    json_schema: Annotated[str, StringConstraints(pattern=r"^[ \n]*\{", min_length=2, max_length=16384)] | None = None
    """Whether the answer is JSON, and nothing but JSON, that a JSON Schema takes: 1, else 0. The schema is JSON in a
    text; it may refer to its own parts alone, and its `pattern`s are as those of `regex`."""
    match: Match | None = None
    """Whether the answer is what a column of the row holds."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Factor of this reward in the sum of all (TRL: `reward_weights`)."""

    @model_validator(mode="after")
    def _one_arm(self) -> Self:
        if sum(arm is not None for arm in (self.model, self.regex, self.json_schema, self.match)) != 1:
            raise ValueError(_ONE_ARM)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_one_arm` for the API server."""
        flags = ", ".join(f"has(self.{arm})" for arm in _ARMS)
        return [cel(f"[{flags}].filter(x, x).size() == 1", _ONE_ARM)]


class Rlhf(Model):
    """Have the model answer prompts, and make likelier the answers that are rewarded above the others to their prompt.
    Dropout is off; answers end at the tokens at which an engine stops."""

    algorithm: Literal["rloo", "grpo"] = "rloo"
    """`rloo`: REINFORCE, each answer measured by the mean reward of the others (arXiv:2402.14740; TRL: RLOOTrainer);
    `grpo`: by the mean and the spread of all, with the loss of a token for every token (arXiv:2402.03300,
    arXiv:2503.14476; TRL: GRPOTrainer)."""
    beta: Annotated[float, Field(ge=0, le=1000)] = 0.05
    """How strongly the model is held to what it was before training: weight of the KL divergence (TRL: `beta`). 0: not
    at all; the divergence is then not measured either."""
    num_generations: Annotated[int, Field(ge=2, le=1024)] = 8
    """Answers to each prompt (TRL: `num_generations`). `training.batchSize` counts answers: it must be a multiple."""
    max_completion_length: Annotated[int, Field(ge=1, le=131072)] = 256
    """Longest answer, in tokens; longer ones are cut (TRL: `max_completion_length`). `dataset.maxLength` is that of the
    prompt."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Temperature of the answers (TRL: `temperature`)."""
    rewards: Annotated[list[RewardSource], listed(0, 8)] = []
    """What answers are rewarded for: the weighted sum of all, of which there must be one at least."""

    @model_validator(mode="after")
    def _some_reward(self) -> Self:
        if not self.rewards:
            raise ValueError(_NO_REWARD)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_some_reward` for the API server; the schema's own would not say what a reward is."""
        return [cel("has(self.rewards) && self.rewards.size() > 0", _NO_REWARD, fieldPath=".rewards")]

    @property
    def jobs(self) -> list[str]:
        """Names of the FineTuneJobs whose reward models are asked for."""
        return [model.fine_tune_job_ref.name for model in self.models if model.fine_tune_job_ref is not None]

    @property
    def models(self) -> list[RewardModel]:
        """The reward models, in order."""
        return [reward.model for reward in self.rewards if reward.model is not None]

    @property
    def columns(self) -> list[str]:
        """The columns that `match` reads."""
        return [reward.match.column for reward in self.rewards if reward.match is not None]
