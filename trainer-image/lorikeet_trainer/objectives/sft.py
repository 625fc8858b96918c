"""Supervised fine-tuning by trl, on rows that we tokenised and labelled ourselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

import pyarrow as pa  # type: ignore[import-untyped]
import torch
from datasets import Dataset  # type: ignore[import-untyped]
from torch import Tensor, nn
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from lorikeet_api import objectives as api
from lorikeet_run.errors import RunError
from lorikeet_run.rows import Epoch, Rows
from lorikeet_run.tokens import Tokens
from lorikeet_trainer.evaluate import Passes, computing, evaluation_mode, log_probabilities
from lorikeet_trainer.loop import Guarded
from lorikeet_trainer.objectives.objective import Objective, Setting, ids
from lorikeet_trainer.state import Evaluation

SEEN: Final = 0.01
"""Change of an example's logits, in their standard deviations, above which it has seen the one before it."""

TRIED: Final = 64
"""Tokens of an example that are enough to see it: all logits of a long one could take more memory than training."""


BLOCK: Final = 8192
"""Rows that are one block for Arrow."""


class SftRun(Guarded, SFTTrainer):
    """trl's trainer, guarded."""


class Sft(Objective[Tokens]):
    """The next token's likelihood, over the tokens that count; examples are packed into sequences of `packed_to` tokens
    at most, if it is given."""

    def __init__(self, settings: api.Sft, packed_to: int | None = None) -> None:
        self._settings, self._packed_to = settings, packed_to

    def trainer(self, setting: Setting, rows: Epoch[Tokens]) -> Guarded:
        """Return trl's trainer on an epoch's rows. Raises RunError where they cannot be packed."""
        packing = self._packed_to is not None
        dataset = examples(rows, self._packed_to, setting.packed)
        arguments = setting.arguments(len(dataset))
        if packing:
            # There is no padding, and without a mask tokens would be told from it by their ids.
            arguments["include_num_input_tokens_seen"] = "all"
        config = SFTConfig(
            **arguments,
            neftune_noise_alpha=self._settings.neftune_alpha,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            packing=packing,
            packing_strategy="bfd",
            loss_type="nll",
        )
        trainer = SftRun(
            model=setting.trainable.model, processing_class=setting.tokenizer, args=config, train_dataset=dataset
        )
        if packing:
            check_apart(trainer, rows)
        return trainer

    def evaluate(
        self, model: nn.Module, held_out: Sequence[Tokens], passes: Passes, reference: Tensor | None = None
    ) -> Evaluation:
        """Return the mean negative log-likelihood of a counted token, in nats."""
        found = log_probabilities(model, held_out, passes)
        return Evaluation(loss=-float(found.sum()) / sum(row.trained for row in held_out))


def examples(rows: Epoch[Tokens], packed_to: int | None, packed: Path) -> Dataset:
    """Return an epoch's rows as trl's collator takes them: on the memory where they lie, or packed into a file."""
    table = pa.concat_tables([_table(source) for source in rows.sources])
    # Without a name of its own it would get one by its content, for which all of it would be written once more.
    dataset = Dataset(table, fingerprint="rows").select(rows.places)
    if packed_to is None:
        return dataset
    packed.parent.mkdir(parents=True, exist_ok=True)
    arguments = {"cache_file_name": str(packed), "load_from_cache_file": False}
    return pack_dataset(dataset, packed_to, "bfd", arguments)


def _table(rows: Rows[Tokens]) -> pa.Table:
    """Return rows for Arrow, which counts the tokens of a block of lists in 32 bits."""
    columns = {"input_ids": rows.input_ids, "labels": rows.labels}
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in columns])
    blocks = []
    for begin in range(0, len(rows), BLOCK):
        ends = rows.ends[begin : begin + BLOCK + 1]
        offsets = pa.array(ends - ends[0], pa.int32())
        lists = [pa.ListArray.from_arrays(offsets, pa.array(one[ends[0] : ends[-1]])) for one in columns.values()]
        blocks.append(pa.RecordBatch.from_arrays(lists, schema=schema))
    return pa.Table.from_batches(blocks, schema)


def check_apart(trainer: SftRun, rows: Sequence[Tokens]) -> None:
    """Try whether the model keeps packed examples apart: not every attention looks at the positions.

    What stands before an example is changed, and what the model makes of the example is to stay as it is. Raises
    RunError (MethodNotApplicable).
    """
    first, second = (ids(rows[index], 0, TRIED) for index in (0, -1))
    model = cast(nn.Module, trainer.model)
    device = next(model.parameters()).device

    def logits_of_the_second(before: list[int]) -> Tensor:
        row = {"input_ids": before + second, "seq_lengths": [len(before), len(second)]}
        batch = {
            name: _moved(value, device) for name, value in trainer.data_collator([row]).items() if name != "labels"
        }
        found: Tensor = model(**batch, use_cache=False).logits[0, len(before) :]
        return found.float()

    with evaluation_mode(model), torch.no_grad(), computing(model, trainer.autocast):
        as_it_is, changed = logits_of_the_second(first), logits_of_the_second([second[-1]] * len(first))
    if float((as_it_is - changed).abs().max()) > SEEN * float(as_it_is.std()):
        raise RunError(
            "MethodNotApplicable",
            "the base model does not keep examples apart that are packed into one sequence: remove dataset.packing",
        )


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
