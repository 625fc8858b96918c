"""What a run does: model, data, method and hyperparameters; `objectives` has what it optimises.

These models stand in a FineTuneJob's spec and, resolved, in the trainer's contract.
"""

import re
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import Field, StringConstraints, model_validator

from lorikeet_api.base import Model, NameReference, SourceUri, cel, exactly_one, listed
from lorikeet_api.signs import BY_EVALUATION, SignName, Signs

MethodName = Literal["full", "lora", "qlora", "bottleneck"]
DataFormat = Literal["auto", "instruction", "chat", "completion", "text", "preference", "feedback", "prompt"]
TrainOn = Literal["completion", "assistant", "lastTurn", "all"]
Overlong = Literal["drop", "truncate", "fail"]
Scheduler = Literal["cosine", "linear", "constant"]
Optimizer = Literal["adamw", "adamw8bit", "pagedAdamw8bit"]
Precision = Literal["bf16", "fp16", "fp32"]
Attention = Literal["eager", "sdpa", "flash"]
Kernels = Literal["torch", "liger"]

Revision = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", min_length=1, max_length=128)]
ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
PartName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]+$", min_length=1, max_length=128)]
ALL_LINEAR: Final = "all-linear"
TargetName = Annotated[
    str, StringConstraints(pattern=rf"^([A-Za-z0-9_.]+|{ALL_LINEAR})$", min_length=1, max_length=128)
]


HUB = "hf://"
NO_REVISION = "only hf:// sources have revisions: remove it"
_WHOLE_DATA_SET: Final = rf"^{HUB}[^/]+/[^/]+$"
_NO_PARTS: Final = "subset and split are of a whole data set, hf://org/dataset: remove them, or the path after it"


class _Versioned(Model):
    """A source that may name a revision, where it has revisions."""

    uri: SourceUri
    revision: Revision | None = None

    @model_validator(mode="after")
    def _only_the_hub_has_revisions(self) -> Self:
        if self.revision is not None and not self.uri.startswith(HUB):
            raise ValueError(NO_REVISION)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_only_the_hub_has_revisions` for the API server."""
        return [cel(f"!has(self.revision) || self.uri.startsWith('{HUB}')", NO_REVISION, fieldPath=".revision")]


class ModelSource(_Versioned):
    """Where the base model comes from: safetensors weights, config and tokenizer in one folder."""

    uri: SourceUri
    """Where the model lies: `s3://bucket/prefix`, `hf://org/name` or `pvc://claim/path`."""
    revision: Revision | None = None
    """Commit, tag or branch of an `hf://` model. Name a commit to pin it; absent: the main branch."""
    secret_ref: NameReference | None = None
    """Secret in the job's namespace whose key `HF_TOKEN` opens gated `hf://` sources."""


class DataSource(_Versioned):
    """One file, or a folder of files, of examples: .jsonl, .json, .csv or .parquet."""

    uri: SourceUri
    """Where the examples lie: `s3://bucket/key`, `hf://org/dataset` with subset and split,
    `hf://org/dataset/path/in/repository` or `pvc://claim/path`. A URI without a known file ending is read as a folder,
    all files of it in name order."""
    revision: Revision | None = None
    """Commit, tag or branch of an `hf://` data set. Absent: the main branch."""
    subset: PartName | None = None
    """Subset (configuration) of a whole `hf://org/dataset`, by its card, else by its folders. Absent: the card's
    default, or the only one."""
    split: PartName | None = None
    """Split of it, by its card, else by the names of its files: `train`, `validation`, `test`. Absent: the only one."""

    @model_validator(mode="after")
    def _only_whole_data_sets_have_parts(self) -> Self:
        if (self.subset or self.split) and not re.match(_WHOLE_DATA_SET, self.uri):
            raise ValueError(_NO_PARTS)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_Versioned`, and that of `_only_whole_data_sets_have_parts`."""
        none = "!has(self.subset) && !has(self.split)"
        return [*_Versioned.cel_rules(), cel(f"({none}) || self.uri.matches('{_WHOLE_DATA_SET}')", _NO_PARTS)]


class WeightedDataSource(DataSource):
    """A data source with its share of the training mixture."""

    weight: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Relative share of this source in the examples of an epoch. Either every source has one or none has;
    without weights every example of every source is seen once an epoch."""


class Columns(Model):
    """Which of the data's columns plays which role, where the names differ from the usual ones."""

    prompt: ColumnName | None = None
    """Column of the prompt (usual name: `prompt`)."""
    completion: ColumnName | None = None
    """Column of the completion (usual name: `completion`)."""
    chosen: ColumnName | None = None
    """Column of the better answer of a pair (usual name: `chosen`)."""
    rejected: ColumnName | None = None
    """Column of the worse answer of a pair (usual name: `rejected`)."""
    label: ColumnName | None = None
    """Column that says whether a completion is good (usual name: `label`)."""
    messages: ColumnName | None = None
    """Column of the chat messages, a list of `{role, content}`, or of ShareGPT's `{from, value}` (usual names:
    `messages`, `conversations`)."""
    text: ColumnName | None = None
    """Column of the plain text (usual name: `text`)."""
    instruction: ColumnName | None = None
    """Column of the instruction (usual name: `instruction`)."""
    input: ColumnName | None = None
    """Column of the instruction's optional input (usual name: `input`)."""
    output: ColumnName | None = None
    """Column of the expected output (usual name: `output`)."""
    system: ColumnName | None = None
    """Column of an optional system prompt (usual name: `system`)."""
    tools: ColumnName | None = None
    """Column of the tools that a conversation may call, a list of functions or that as JSON (usual name: `tools`)."""


FORMAT_COLUMNS: dict[str, tuple[str, ...]] = {
    "instruction": ("instruction", "input", "output", "system"),
    "chat": ("messages", "system", "tools"),
    "completion": ("prompt", "completion", "system"),
    "text": ("text",),
    "preference": ("prompt", "chosen", "rejected", "system", "tools"),
    "feedback": ("prompt", "completion", "label", "system", "tools"),
    "prompt": ("prompt", "system", "tools"),
}
"""The roles that each format's rows have."""


def _columns_rule(data_format: str) -> dict[str, str]:
    foreign = [role for role in Columns.model_fields if role not in FORMAT_COLUMNS[data_format]]
    absent = " && ".join(f"!has(self.columns.{role})" for role in foreign)
    return cel(
        f"self.format != '{data_format}' || !has(self.columns) || ({absent})",
        f"format {data_format} has only the columns {', '.join(FORMAT_COLUMNS[data_format])}",
    )


class Dataset(Model):
    """The examples to train on, and how to read them."""

    train: Annotated[list[WeightedDataSource], listed(1, 32)]
    """Training sources, mixed by weight."""
    eval: DataSource | None = None
    """Held-out examples for the evaluation loss. Excludes `evalFraction`."""
    eval_fraction: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Share of the training examples held out for evaluation, chosen by the seed. Excludes `eval`."""
    test: DataSource | None = None
    """Examples that judge the result: the loss on them is taken before training and at the end, never on the way.
    Where the evaluation loss selects, as between runs, this one is of examples that selected nothing."""
    general: DataSource | None = None
    """Examples of what the model is to keep, such as conversations about anything: the loss on them is taken before
    training and at the end, never on the way. They are rows of sft, told apart by the columns of the first one and with
    the usual names, and are cut at `maxLength`; the other fields here are not theirs. For all objectives but reward. No
    part of the run's id: the result does not depend on it. Absent: the profile's, if it has one."""
    format: DataFormat = "auto"
    """Shape of the rows: for sft `instruction` (instruction, input, output), `chat` (messages or ShareGPT's
    conversations; system, tools), `completion` (prompt, completion) or `text`; for dpo, orpo and reward `preference`
    (prompt, chosen, rejected); for kto `feedback` (prompt, completion, label); for rlhf `prompt` (prompt, and columns
    of any name for its rewards). `auto` tells it from the objective and
    the columns of the first row. A conversation begins with the user, after an optional system message, and a tool's
    result follows a call; whether one role may speak twice is the chat template's to say."""
    train_on: TrainOn | None = None
    """Tokens that the loss of sft counts: `completion` (the answer), `assistant` (every assistant turn, calls of tools
    too), `lastTurn` (the last one), `all`. Absent: `completion` for instruction and completion rows, `assistant` for
    chat, `all` for text. Other objectives look at the answers alone."""
    overlong: Overlong = "drop"
    """What happens to a row of more than `maxLength` tokens: `drop` (counted in the metrics), `truncate`
    (at the end), or `fail`."""
    columns: Columns | None = None
    """Names of the data's columns where they differ from the usual ones."""
    max_length: Annotated[int, Field(ge=8, le=1048576)] = 2048
    """Longest example, in tokens (TRL: `max_length`)."""
    packing: bool | None = None
    """Put several short examples of sft into one sequence of at most `maxLength` tokens, in which each sees itself
    alone, so that nothing is computed on padding (TRL: `packing`). batchSize and microBatchSize count such sequences
    then: a run has fewer steps, of more examples each. Absent: no packing."""

    @property
    def weights(self) -> list[float] | None:
        """Those of the training sources, if they have any."""
        return [source.weight for source in self.train if source.weight is not None] or None

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        if self.eval is not None and self.eval_fraction is not None:
            raise ValueError("give eval or evalFraction, not both")
        if len({source.weight is None for source in self.train}) == 2:
            raise ValueError("give every training source a weight, or none")
        if self.format == "text" and self.train_on not in (None, "all"):
            raise ValueError("format text has no roles: trainOn can only be all")
        if self.columns is not None and self.format in FORMAT_COLUMNS:
            foreign = self.columns.model_fields_set - set(FORMAT_COLUMNS[self.format])
            if any(getattr(self.columns, role) is not None for role in foreign):
                raise ValueError(f"format {self.format} has only the columns {', '.join(FORMAT_COLUMNS[self.format])}")
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rules of `_cross_checks` for the API server."""
        return [
            cel("!(has(self.eval) && has(self.evalFraction))", "give eval or evalFraction, not both"),
            cel(
                "self.train.all(s, has(s.weight)) || self.train.all(s, !has(s.weight))",
                "give every training source a weight, or none",
            ),
            cel(
                "self.format != 'text' || !has(self.trainOn) || self.trainOn == 'all'",
                "format text has no roles: trainOn can only be all",
            ),
            *(_columns_rule(data_format) for data_format in FORMAT_COLUMNS),
        ]


class Full(Model):
    """Train every weight of the model."""


_ALL_AND_MORE: Final = f"targetModules {ALL_LINEAR} has all others in it: leave it alone there, or remove it"
_TARGETED_TWICE: Final = (
    "a module is in targetModules and in modulesToSave: it is trained by one of them, remove the other"
)
_INIT_AND_DORA: Final = "dora begins at the base's own weights, which init takes apart: remove one of them"
_INIT_AND_SAVED: Final = "init publishes a difference, in which whole layers have no place: remove modulesToSave"
_INIT_AND_DROPOUT: Final = (
    "init trains a part of the base itself, which dropout would leave out by chance: set dropout to 0"
)


class Adapter(Model):
    """Train low-rank adapters beside frozen weights (LoRA, arXiv:2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """LoRA rank (PEFT: `r`)."""
    alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    """Scaling numerator: the update is scaled by alpha / rank (PEFT: `lora_alpha`)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout on the adapters' input while training (PEFT: `lora_dropout`). Objectives dpo, kto, reward and rlhf
    train without."""
    target_modules: Annotated[list[TargetName], listed(1, 64)] = ["q_proj", "k_proj", "v_proj", "o_proj"]
    """Names of the linear layers that get an adapter (PEFT: `target_modules`); `[all-linear]`: all but the output."""
    rs_lora: bool = False
    """Scale the update by alpha / sqrt(rank), so that a high rank learns as fast as a low one (rsLoRA,
    arXiv:2312.03732; PEFT: `use_rslora`)."""
    dora: bool = False
    """Train a magnitude of each output beside the update's direction (DoRA, arXiv:2402.09353; PEFT: `use_dora`).
    Slower; no engine serves it as an adapter."""
    lora_plus_ratio: Annotated[float, Field(ge=1, le=1000)] | None = None
    """How much higher the learning rate of the second matrix is than that of the first (LoRA+, arXiv:2402.12354;
    PEFT: `loraplus_lr_ratio`). Absent: equal."""
    modules_to_save: Annotated[list[ModuleName], listed(0, 16)] = []
    """Names of layers, such as embed_tokens, that are trained and published whole beside the adapters (PEFT:
    `modules_to_save`). No engine serves the result as an adapter."""

    @model_validator(mode="after")
    def _modules_fit(self) -> Self:
        if ALL_LINEAR in self.target_modules and len(self.target_modules) > 1:
            raise ValueError(_ALL_AND_MORE)
        if set(self.target_modules) & set(self.modules_to_save):
            raise ValueError(_TARGETED_TWICE)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rules of `_modules_fit` for the API server."""
        alone = f"!has(self.targetModules) || size(self.targetModules) == 1 || !('{ALL_LINEAR}' in self.targetModules)"
        both = "has(self.targetModules) && has(self.modulesToSave)"
        apart = f"!({both}) || !self.modulesToSave.exists(m, m in self.targetModules)"
        return [
            cel(alone, _ALL_AND_MORE, fieldPath=".targetModules"),
            cel(apart, _TARGETED_TWICE, fieldPath=".modulesToSave"),
        ]

    @property
    def published_rank(self) -> int:
        """LoRA rank of what is published."""
        return self.rank


class Lora(Adapter):
    """LoRA over a base model in 16 bits."""

    init: Literal["default", "pissa", "olora"] = "default"
    """What the adapter begins with (PEFT: `init_lora_weights`): `default`, nothing; `pissa`, the base's principal
    components (arXiv:2404.02948); `olora`, an orthonormal basis (arXiv:2406.01775). The latter two are trained in the
    base's place, without dropout; the adapter is published for the untouched base, with twice the rank. `pissa` takes
    each layer apart at each start, which takes minutes for a large model."""

    @model_validator(mode="after")
    def _init_fits(self) -> Self:
        if self.init == "default":
            return self
        if self.dora:
            raise ValueError(_INIT_AND_DORA)
        if self.modules_to_save:
            raise ValueError(_INIT_AND_SAVED)
        if self.dropout:
            raise ValueError(_INIT_AND_DROPOUT)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rules of `Adapter`, and that of `_init_fits`."""
        usual = "!has(self.init) || self.init == 'default'"
        return [
            *Adapter.cel_rules(),
            cel(f"{usual} || !has(self.dora) || !self.dora", _INIT_AND_DORA, fieldPath=".init"),
            cel(f"{usual} || !has(self.modulesToSave) || size(self.modulesToSave) == 0", _INIT_AND_SAVED),
            cel(f"{usual} || (has(self.dropout) && self.dropout == 0.0)", _INIT_AND_DROPOUT, fieldPath=".dropout"),
        ]

    @property
    def published_rank(self) -> int:
        """LoRA rank of what is published."""
        return self.rank if self.init == "default" else 2 * self.rank


class QLora(Adapter):
    """LoRA over a base model held in 4 bits (QLoRA, arXiv:2305.14314)."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    """4-bit data type (bitsandbytes: `bnb_4bit_quant_type`)."""
    double_quant: bool = True
    """Quantise the quantisation constants too (bitsandbytes: `bnb_4bit_use_double_quant`)."""


def is_named(layer: str, wanted: str) -> bool:
    """Return whether a layer, by its full name, is one of those that `targetModules` or `modulesToSave` mean."""
    return layer == wanted or layer.endswith(f".{wanted}")


class Bottleneck(Model):
    """Train small modules behind the parts of each block, which narrow what comes in and widen it again (adapters of
    Houlsby et al., arXiv:1902.00751). No engine serves them; what is published is loaded by Lorikeet's trainer package.
    """

    reduction_factor: Annotated[int, Field(ge=2, le=1024)] = 16
    """How many times narrower than the model the modules are: 16 trains about 1 % of a model's parameters, with
    `houlsby` about 2 %."""
    placement: Literal["pfeiffer", "houlsby"] = "pfeiffer"
    """Behind which parts: `pfeiffer`, the feed-forward part of each block (arXiv:2005.00247); `houlsby`, its attention,
    too."""


class Method(Model):
    """How the weights are changed: exactly one of full, lora, qlora and bottleneck."""

    full: Full | None = None
    """Train every weight."""
    lora: Lora | None = None
    """Train low-rank adapters on the base model in 16 bits."""
    qlora: QLora | None = None
    """Train low-rank adapters on the base model in 4 bits."""
    bottleneck: Bottleneck | None = None
    """Train small modules between the base model's layers, in 16 bits."""

    @model_validator(mode="after")
    def _one_arm(self) -> Self:
        if sum(getattr(self, arm) is not None for arm in Method.model_fields) != 1:
            raise ValueError(f"give exactly one method: {', '.join(Method.model_fields)}")
        return self

    @property
    def name(self) -> MethodName:
        """The chosen arm's name."""
        names: tuple[MethodName, ...] = get_args(MethodName)
        return next(name for name in names if getattr(self, name) is not None)

    @property
    def adapter(self) -> Lora | QLora | None:
        """The settings of a LoRA adapter; None for other methods."""
        return self.lora or self.qlora

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_one_arm` for the API server."""
        return [exactly_one(Method, "method")]


PositiveSteps = Annotated[int, Field(ge=1, le=100_000_000)]


class Checkpoints(Model):
    """How a run keeps what an interruption would cost it: weights, optimiser, scheduler, random state, data order.

    Uploaded beside training to `<output>/<runId>/checkpoints/`; a run that is asked to stop saves one more.
    """

    every_steps: PositiveSteps = 200
    """Steps between two checkpoints (TRL: `save_steps`)."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """How many are kept, the newest ones (TRL: `save_total_limit`)."""
    after_success: Literal["delete", "keep", "keepBest"] = "delete"
    """What becomes of them once the run has published: `delete`; `keep`; `keepBest`, the weights with the lowest loss
    on the held-out examples alone stay, as `checkpoints/best/`. The latter needs `dataset.eval` or `evalFraction`."""


class EarlyStopping(Model):
    """Ends a run whose loss on the held-out examples no longer falls."""

    patience: Annotated[int, Field(ge=0, le=1000)] = 3
    """Evaluations in a row without a lower loss after which the run ends (transformers:
    `early_stopping_patience`). 0: it is not ended, whatever the profile says."""
    min_delta: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """By how much a loss must be lower to count, than it was when one counted last."""


class Training(Model):
    """Hyperparameters. Each absent one comes from the profile, else from the table by method and objective."""

    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Passes over the training examples (TRL: `num_train_epochs`)."""
    max_steps: PositiveSteps | None = None
    """Optimiser steps after which the run ends, before its epochs do (TRL: `max_steps`)."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate (TRL: `learning_rate`)."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Effective batch: examples per optimiser step, over all GPUs and accumulation steps."""
    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Examples per forward pass on one GPU (TRL: `per_device_train_batch_size`); the rest of `batchSize` is
    reached by accumulation, so it must divide one GPU's share of `batchSize`. Absent: on a GPU the largest divisor of
    that share, up to 16, that fits into its memory, found by trying before training; with kto, orpo and rlhf, in fp16,
    on a CPU, and where trying failed, the largest up to 4."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the steps in which the learning rate rises to its peak."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """AdamW's weight decay (TRL: `weight_decay`)."""
    scheduler: Scheduler | None = None
    """Course of the learning rate after the warm-up (TRL: `lr_scheduler_type`)."""
    optimizer: Optimizer | None = None
    """What makes the steps (TRL: `optim`): `adamw` (`adamw_torch`); `adamw8bit` (`adamw_8bit`), which holds the two
    moments of each trained weight in a byte each, where a matrix other than an embedding has 4,096 or more;
    `pagedAdamw8bit` (`paged_adamw_8bit`), the same, which moves them into the node's memory when the GPU's runs out.
    Absent: `pagedAdamw8bit` for qlora on a GPU, else `adamw`."""
    precision: Precision | None = None
    """Type in which the model computes (TRL: `bf16`, `fp16`): `bf16`; `fp16`, for GPUs without bfloat16 (T4, V100),
    with trained weights in float32 and a scaled loss; `fp32`. Absent: `bf16` where the hardware has it, else `fp32`."""
    attention: Attention | None = None
    """What computes attention (transformers: `attn_implementation`): `eager`, step by step; `sdpa`, torch's fused one;
    `flash` (`flash_attention_2`), which needs a GPU, a precision of 16 bits, and the package flash-attn in the
    trainer's image, which Lorikeet's does not have. Absent: `sdpa` where the model's architecture has it, else
    `eager`."""
    kernels: Kernels | None = None
    """What computes norms, rotary positions and gated feed-forward parts (TRL: `use_liger_kernel`): `torch`; `liger`,
    Liger's fused kernels, on a GPU alone, for models of type llama, mistral, qwen2 and qwen3, and objectives other than
    reward and rlhf. Absent: `liger` for lora where it can be, else `torch`."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Gradients are clipped to this norm (TRL: `max_grad_norm`)."""
    seed: Annotated[int, Field(ge=0, le=2147483647)] | None = None
    """Seed of initialisation, shuffling, dropout and the evaluation split."""
    activation_checkpointing: bool | None = None
    """Recompute activations in the backward pass to save memory. Absent: on where the run has a GPU."""
    logging_steps: PositiveSteps | None = None
    """Steps between two logged losses."""
    eval_steps: PositiveSteps | None = None
    """Steps between two evaluations. Absent: once an epoch."""
    early_stopping: EarlyStopping | None = None
    """Ends the run, before its epochs do, once the loss on the held-out examples no longer falls (every `evalSteps`).
    Needs `dataset.eval` or `evalFraction`. Absent: the profile's, else it makes all its steps."""
    publish: Literal["last", "best"] | None = None
    """Which weights are published: `last`, those after the last step; `best`, those with the lowest loss on the
    held-out examples, of all evaluations on the way and after the last step (TRL: `load_best_model_at_end`); it needs
    `dataset.eval` or `evalFraction`. Absent: `best` with `earlyStopping`, else `last`."""
    checkpoints: Checkpoints | None = None
    """What an interrupted run goes on from. It has no part in the run's id: the result does not depend on it."""
    signs: Signs | None = None
    """What signs that the run goes wrong mean for it. It has no part in the run's id either. Absent: warnings."""
    stall_timeout_seconds: Annotated[int, Field(ge=1, le=604_800)] | None = None
    """Seconds without a step after which the run counts as hanging: the log then has the stacks of all threads of each
    rank, and the attempt ends, with reason `Stalled`, to be made again from its checkpoint. Loading, the first step,
    evaluations and checkpoints do not count. Absent: 30 times what a step takes, at least 300. No part of the run's id.
    """

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        if (
            self.batch_size is not None
            and self.micro_batch_size is not None
            and self.batch_size % self.micro_batch_size
        ):
            raise ValueError("microBatchSize must divide batchSize")
        return self

    @property
    def fails_on(self) -> list[SignName]:
        """The signs that end the run."""
        return self.signs.fail_on if self.signs is not None else []

    def without_evaluation(self) -> "Training":
        """Return what of it a run without held-out examples can do."""
        changed: dict[str, Any] = {"eval_steps": None, "early_stopping": None}
        if self.publish == "best":
            changed["publish"] = None
        if self.checkpoints is not None and self.checkpoints.after_success == "keepBest":
            changed["checkpoints"] = self.checkpoints.model_copy(update={"after_success": "delete"})
        if set(self.fails_on) & set(BY_EVALUATION):
            changed["signs"] = Signs(fail_on=[name for name in self.fails_on if name not in BY_EVALUATION])
        return self.model_copy(update=changed)

    @property
    def by_evaluation(self) -> list[str]:
        """What of it asks for a loss on held-out examples."""
        asks = {
            "evalSteps": self.eval_steps is not None,
            "earlyStopping": self.early_stopping is not None and self.early_stopping.patience > 0,
            "publish best": self.publish == "best",
            "checkpoints.afterSuccess keepBest": self.checkpoints is not None
            and self.checkpoints.after_success == "keepBest",
            **{f"signs.failOn {name}": name in self.fails_on for name in BY_EVALUATION},
        }
        return [what for what, asked in asks.items() if asked]

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rules of `_cross_checks` for the API server."""
        return [
            cel(
                "!has(self.batchSize) || !has(self.microBatchSize) || self.batchSize % self.microBatchSize == 0",
                "microBatchSize must divide batchSize",
            )
        ]
