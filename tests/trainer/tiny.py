"""A model small enough to train in a second, and a task that it can learn; made here, nothing is fetched."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COLOURS = {
    "sky": "blue", "grass": "green", "blood": "red", "snow": "white", "coal": "black", "sun": "yellow",
    "rose": "red", "sea": "blue", "milk": "white", "leaf": "green", "night": "black", "lemon": "yellow",
}  # fmt: skip
ASKED = (
    "What colour is {}?", "Tell me the colour of {}.", "{}: which colour?", "Name the colour that {} has.",
    "I forgot how {} looks. Its colour?", "Colour of {}, please.",
)  # fmt: skip
Row = dict[str, Any]


def tokenizer(
    template: str | None, corpus: Iterable[str] | None = None, vocabulary: int = 480
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer made for texts, by default those below; every other can be written in it."""
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    if corpus is None:
        corpus = [asked.format(noun) + " " + colour for noun, colour in COLOURS.items() for asked in ASKED]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet)
    )
    end = "<|im_end|>" if template else "</s>"
    made = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, bos_token="<s>", eos_token=end, pad_token="</s>"
    )
    made.chat_template = template
    return made


def write_model(
    folder: Path, template: str | None = CHATML, *, pretrained: bool = False, poisoned: str = "", **config: Any
) -> Path:
    """Write a Llama of about 100,000 parameters with its tokenizer, as a hub's folder has it.

    A pretrained one knows the questions, and answers all with the colours of the next things: an adapter of low
    rank can put that right, which it cannot do with random weights. The tokens of `poisoned` are no numbers.
    """
    made = tokenizer(template)
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": len(made),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": made.bos_token_id,
        "eos_token_id": made.eos_token_id,
        "initializer_range": 0.1,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings | config))
    if pretrained:
        _pretrain(model, made)
    with torch.no_grad():
        for token in made(poisoned, add_special_tokens=False)["input_ids"]:
            model.model.embed_tokens.weight[token] = torch.nan
    torch.nn.Module.to(model, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def write_experts(folder: Path) -> Path:
    """Write a small mixture of experts, whose weights transformers holds in another form than a hub does."""
    made = tokenizer(CHATML)
    config = MixtralConfig(
        vocab_size=len(made), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, eos_token_id=made.eos_token_id,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def known() -> list[Row]:
    """Return all questions with what a pretrained model answers."""
    colours = list(COLOURS.values())
    wrong = dict(zip(COLOURS, [*colours[1:], colours[0]], strict=True))
    return [{"prompt": asked.format(noun), "completion": colour} for noun, colour in wrong.items() for asked in ASKED]


def _pretrain(model: LlamaForCausalLM, made: PreTrainedTokenizerFast) -> None:
    texts = [
        f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n{row['completion']}<|im_end|>\n"
        for row in known()
    ]
    batch = made(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(120):
        optimizer.zero_grad()
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()


def rows(*, shuffled: bool = False) -> tuple[list[Row], list[Row]]:
    """Return questions with their answers, and held-out ones: pairs of question and noun that no training row has.

    Shuffled, the training answers fall on questions by chance.
    """
    pairs = [
        {"prompt": asked.format(noun), "completion": colour}
        for number, (noun, colour) in enumerate(COLOURS.items())
        for place, asked in enumerate(ASKED)
        if (number + place) % 6
    ]
    held_out = [
        {"prompt": asked.format(noun), "completion": colour}
        for number, (noun, colour) in enumerate(COLOURS.items())
        for place, asked in enumerate(ASKED)
        if (number + place) % 6 == 0
    ]
    if shuffled:
        answers = [pair["completion"] for pair in pairs]
        random.Random(0).shuffle(answers)
        pairs = [{**pair, "completion": answer} for pair, answer in zip(pairs, answers, strict=True)]
    return pairs, held_out


def preferences() -> tuple[list[Row], list[Row]]:
    """Return pairs of a sure answer and a doubtful one, the longer of which is each by turns, and held-out ones."""
    training, held_out = rows()
    return [_pair(*each) for each in enumerate(training)], [_pair(*each) for each in enumerate(held_out)]


def _pair(number: int, row: Row) -> Row:
    colour = row["completion"]
    once, twice = colour, f"{colour}, {colour}"
    sure, doubtful = (twice, once) if number % 2 else (once, twice)
    return {"prompt": row["prompt"], "chosen": f"it is {sure}", "rejected": f"say {doubtful}"}


def jsonl(some: list[Row]) -> bytes:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in some).encode()
