"""Policy optimisation by trl, RLOO or GRPO: answers to prompts that we tokenised ourselves, rewarded by `rewards`."""

import json
from collections.abc import Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Final, cast

import torch
import torch.distributed as dist
from datasets import Dataset  # type: ignore[import-untyped]
from peft import PeftModel
from torch import nn
from torch.utils.data import Sampler
from transformers import GenerationConfig, PreTrainedTokenizerBase
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.utils import RepeatSampler, use_adapter

from lorikeet_api.rlhf import Rlhf as Settings
from lorikeet_run.batches import batched
from lorikeet_run.errors import RunError
from lorikeet_run.tokens import Prompted, Tokens
from lorikeet_trainer.evaluate import Interrupted, Passes, computing, evaluation_mode, joined, log_probabilities, ranks
from lorikeet_trainer.loop import Guarded
from lorikeet_trainer.objectives.objective import Objective, Setting, ids
from lorikeet_trainer.rewards import Reward
from lorikeet_trainer.samples import pad_left
from lorikeet_trainer.state import Evaluation
from lorikeet_trainer.stop import STOP

_REFERENCE: Final = "ref"
"""The adapter as it was before training, as trl calls it."""


class _Order(RepeatSampler):
    """Draws the order of each epoch by its number: a run that goes on in a later one draws the same."""

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; accelerate calls it."""
        self.generator.manual_seed(int(self.seed or 0) + epoch)


class RlhfRun(Guarded):
    """What stands before trl's trainer of either algorithm."""

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        # trl generates past accelerate's autocast, without which layers of float32 do not go with those of 16 bits.
        with self.accelerator.autocast():
            return cast(Any, super())._generate_single_turn(*args, **kwargs)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        args: Any = self.args
        return _Order(
            data_source=cast(Sized, self.train_dataset if dataset is None else dataset),
            mini_repeat_count=args.num_generations,
            batch_size=args.generation_batch_size // args.num_generations,
            repeat_count=args.num_iterations * args.steps_per_generation,
            seed=args.seed,
        )


class RlooRun(RlhfRun, RLOOTrainer):
    """trl's RLOO, guarded."""


class GrpoRun(RlhfRun, GRPOTrainer):
    """trl's GRPO, guarded."""


class Rlhf(Objective[Prompted]):
    """Answers likelier that are rewarded above the others to their prompt."""

    figures: ClassVar = {
        "reward": "reward",
        "kl": "kl",
        "entropy": "entropy",
        "completions/mean_length": "length",
    }

    def __init__(self, settings: Settings, rewards: list[Reward], stops: frozenset[int]) -> None:
        """Take what gives answers their rewards, and the tokens at which they end. Raises RunError (ModelInvalid)."""
        if not stops:
            raise RunError(
                "ModelInvalid",
                "objective rlhf has the model answer until a token at which engines stop, and the base model names"
                " none: add eos_token_id to its generation_config.json",
            )
        self._settings = settings
        self._rewards = rewards
        self._stops = stops
        self._run: Any = None

    def trainer(self, setting: Setting, rows: Sequence[Prompted]) -> Guarded:
        """Return trl's trainer on an epoch's prompts."""
        settings = self._settings
        arguments: dict[str, Any] = {
            # trl counts them itself.
            **(setting.arguments(len(rows)) | {"include_num_input_tokens_seen": "no"}),
            "beta": settings.beta,
            "num_generations": settings.num_generations,
            "max_completion_length": settings.max_completion_length,
            "temperature": settings.temperature,
            "top_p": 1.0,
            "top_k": 0,
            # The model's own configuration says no, for training.
            "generation_kwargs": {"use_cache": True},
            "reward_weights": [reward.weight for reward in settings.rewards],
            # One step on each batch of answers, by the model that has written them.
            "num_iterations": 1,
            "disable_dropout": True,
            "remove_unused_columns": False,
        }
        dataset = Dataset.from_dict(
            {
                "prompt": [ids(row.tokens, 0) for row in rows],
                "row": [json.dumps(dict(row.columns)) for row in rows],
            }
        )
        more: dict[str, Any] = {
            "model": setting.trainable.model,
            "reward_funcs": list(self._rewards),
            "processing_class": setting.tokenizer,
            "train_dataset": dataset,
        }
        if settings.algorithm == "rloo":
            run: Any = RlooRun(args=RLOOConfig(**arguments, normalize_advantages=False), **more)
        else:
            run = GrpoRun(args=GRPOConfig(**arguments, loss_type="dapo", scale_rewards="group"), **more)
        run.eos_token_ids = sorted(self._stops)
        run.generation_kwargs["eos_token_id"] = run.generation_config.eos_token_id = run.eos_token_ids
        self._run = run
        return cast(Guarded, run)

    def evaluate(
        self, model: nn.Module, held_out: Sequence[Prompted], passes: Passes, reference: Any = None
    ) -> Evaluation:
        """Return what an answer to each prompt is worth, how far it is from the start, and how long.

        The answers are drawn as in training, by the run's seed: each evaluation draws alike.
        """
        tokenizer: PreTrainedTokenizerBase = self._run.processing_class
        prompts = [ids(row.tokens, 0) for row in held_out]
        answers = self._drawn(model, prompts, passes)
        asked = {
            "prompts": prompts,
            "completions": tokenizer.batch_decode(answers, skip_special_tokens=True),
            "completion_ids": answers,
            "row": [json.dumps(dict(row.columns)) for row in held_out],
        }
        weights = [reward.weight for reward in self._settings.rewards]
        numbers = torch.tensor([reward(**asked) for reward in self._rewards], dtype=torch.float64)
        found = (numbers.T @ torch.tensor(weights, dtype=torch.float64)).mean().to(next(model.parameters()).device)
        if dist.is_initialized():
            dist.broadcast(found, 0)  # what is decided by it is decided alike
        reward = float(found)
        rows = [joined(*each) for each in zip(prompts, answers, strict=True)]
        length = sum(map(len, answers)) / len(answers)
        return Evaluation(loss=-reward, reward=reward, kl=self._moved(model, rows, passes), length=length)

    def _moved(self, model: nn.Module, rows: Sequence[Tokens], passes: Passes) -> float | None:
        """Return an estimate of the KL divergence from the model as it was before training, in nats a token.

        By the tokens of answers that the model has drawn (Schulman's k1), so that it may fall below nothing where there
        is little. None where the run keeps no reference.
        """
        if not self._settings.beta:
            return None
        now = log_probabilities(model, rows, passes)
        before: tuple[nn.Module, AbstractContextManager[None]] = (
            (model, use_adapter(model, _REFERENCE))
            if isinstance(model, PeftModel)
            else (self._run.ref_model, nullcontext())
        )
        with before[1]:
            then = log_probabilities(before[0], rows, passes)
        return float((now - then).sum()) / sum(row.trained for row in rows)

    def _drawn(self, model: nn.Module, prompts: Sequence[Sequence[int]], passes: Passes) -> list[list[int]]:
        """Return an answer to each prompt, in order; no random state but its own is changed.

        Each rank answers every n-th one, and all ranks get all answers. Raises Interrupted if a run of one rank is
        asked to stop meanwhile.
        """
        run = self._run
        config: GenerationConfig = run.generation_config
        device = next(model.parameters()).device
        rank, world = ranks()
        mine = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))[rank::world]
        at_once = run.args.per_device_train_batch_size * run.args.steps_per_generation
        found = torch.zeros(len(prompts), self._settings.max_completion_length, dtype=torch.long, device=device)
        devices = [device] if device.type == "cuda" else []
        computes = computing(model, passes.autocast)
        with evaluation_mode(model), torch.no_grad(), computes, torch.random.fork_rng(devices=devices):
            for some in batched(mine, at_once):
                if world == 1 and STOP.requested:
                    raise Interrupted
                torch.manual_seed(run.args.seed + some[0])
                batch = pad_left([prompts[index] for index in some], passes.pad_id, device)
                made = cast(Any, model).generate(**batch, generation_config=config)
                said = made[:, batch["input_ids"].shape[1] :]
                # Nothing is 0.
                found[list(some), : said.shape[1]] = said + 1
        if world > 1:
            dist.all_reduce(found)
        return [self._ended([token - 1 for token in row if token]) for row in found.tolist()]

    def _ended(self, answer: list[int]) -> list[int]:
        """Return an answer with the token at which it ends, and nothing behind."""
        end = next((place for place, token in enumerate(answer) if token in self._stops), len(answer))
        return answer[: end + 1]
