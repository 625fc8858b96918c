"""Every weight of the model is trained; a whole model is published."""

from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_model, save_model
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lorikeet_api.contract import SourceDigest
from lorikeet_trainer.methods.trainable import Trainable, cast_trained

WEIGHTS: Final = "model.safetensors"


class Full(Trainable):
    """A model all of whose weights are trained, in float32."""

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        """Take a model that was loaded in float32, and the folder that it came from."""
        model.requires_grad_(True)
        super().__init__(model, torch.float32)
        self._folder = folder

    def save_checkpoint(self, folder: Path) -> None:
        """Write the weights as they are in memory.

        transformers would convert some architectures' weights for others to read, and check a generation config that
        nobody trains.
        """
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(folder / WEIGHTS))

    def load_checkpoint(self, folder: Path) -> None:
        """Read them back."""
        load_model(self.model, folder / WEIGHTS, strict=True)

    def finish(self) -> None:
        """Cast to the type in which the base was saved: the parameters alone.

        `Module.to` would cast the rotary frequencies too, which are never published.
        """
        cast_trained(self.model, published_dtype(self._folder))

    def publish(self, output: Path, base: SourceDigest, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a whole model in transformers' layout, large ones in shards."""
        if (self._folder / "generation_config.json").exists():
            # trl has set fields of it; a changed one is checked more strictly than many published models stand.
            self.model.generation_config = GenerationConfig.from_pretrained(self._folder)
        self.model.config.use_cache = True
        self.model.config._name_or_path = ""
        self.model.save_pretrained(output / "model")
        tokenizer.save_pretrained(output / "model")


def published_dtype(folder: Path) -> torch.dtype:
    """Return the type in which the base model in `folder` was saved; a full fine-tune is published in it too."""
    dtype = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
