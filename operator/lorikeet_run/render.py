"""Token ids and labels out of examples: the chat template, which tokens count, what is too long."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self, cast

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lorikeet_api.contract import RunContract, Template, Use, read_as
from lorikeet_api.training import Overlong
from lorikeet_run.batches import ahead
from lorikeet_run.conversation import tool_variants
from lorikeet_run.errors import RunError
from lorikeet_run.examples import Example, Instance, Instances, Prompt
from lorikeet_run.files import invalid
from lorikeet_run.rendered import Rendered, RenderedData
from lorikeet_run.sources import Data
from lorikeet_run.tokenizer import load_tokenizer, stop_ids
from lorikeet_run.tokens import IGNORED, Tokens

OWN_TEMPLATE: Final = """\
{%- if bos_token %}{{ bos_token }}{% endif %}
{%- for message in messages %}
{{- '### ' + message['role'] + '\\n' + message['content'] }}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}
{{- '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}
"""
"""For base models that have no chat template: a heading for each turn, the answer ended by the stop token."""

_BATCH: Final = 512
"""Rows that are tokenised in one call,"""
_BATCH_CHARACTERS: Final = 1 << 21
"""or so many characters of them, since a call takes some hundred bytes for each token that it makes."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """An example as text, with the texts that end before and after each trained turn."""

    example: Example
    text: str
    turns: tuple[tuple[str, str | None], ...] = ()
    """None: the whole text ends there."""

    @property
    def characters(self) -> int:
        """Those of all its texts."""
        return len(self.text) + sum(len(text or "") for turn in self.turns for text in turn)


class Renderer:
    """Renders examples for one tokenizer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: frozenset[int],
        *,
        date: str,
        max_length: int,
        overlong: Overlong,
    ) -> None:
        """Take what an engine would stop at as `stop_ids`, and the day that templates print as `date`.

        `date` (YYYY-MM-DD) is given to templates as the clock, which they print in their own style: so training
        shows them what an engine shows them on that day, and a second run shows the same.
        """
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._clock = _clock_macro(datetime.strptime(date, "%Y-%m-%d"))
        self._max_length = max_length
        self._overlong = overlong
        # Asked for every answer, mostly about the same line break.
        self._is_blank = lru_cache(1024)(lambda ids: not str(tokenizer.decode(list(ids))).strip())

    @classmethod
    def of(cls, contract: RunContract, model: Path, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Return the renderer of a run whose base model lies in the folder `model`. Raises RunError (ModelInvalid)."""
        return cls(
            tokenizer,
            stop_ids(model, tokenizer),
            date=contract.date,
            max_length=contract.dataset.max_length,
            overlong=contract.dataset.overlong,
        )

    def render(self, rows: Instances) -> Rendered:
        """Return the rows as tokens. Raises RunError (DataInvalid, MethodNotApplicable)."""
        (whole,) = self.render_in_parts(rows, sys.maxsize, sys.maxsize)
        return whole

    def render_in_parts(self, rows: Instances, most_rows: int, most_characters: int) -> Iterator[Rendered]:
        """Yield the rows as tokens, in parts of about so many rows, or characters of them, at most; one at least.

        Raises RunError (DataInvalid, MethodNotApplicable).
        """
        rendered, held = Rendered(), 0
        # The tokenizer's threads leave Python alone, which goes on to the next batch.
        for some, pieces, characters in ahead(self._pieces(rows)):
            if len(rendered.rows) >= most_rows or held >= most_characters:
                yield rendered
                rendered, held = Rendered(), 0
            held += characters
            tokens = iter(self._render(pieces))
            for row in some:
                parts = [next(tokens) for _ in row.parts]
                whole = [part for part in parts if part is not None]
                if len(whole) < len(parts):
                    rendered.dropped += 1
                    continue
                made = row.assemble(whole)
                if made is None:
                    rendered.dropped += 1
                    continue
                rendered.rows.append(made)
                for example, part in zip(row.parts, whole, strict=True):
                    self._count_stop(example, part, rendered)
        yield rendered

    def _pieces(self, rows: Instances) -> Iterator[tuple[list[Instance], list[_Piece], int]]:
        """Yield some rows at a time, their examples as text, and how many characters all that has."""
        some, pieces, characters = list[Instance](), list[_Piece](), 0
        for row in rows:
            of_row = [self._piece(example) for example in row.parts]
            some.append(row)
            pieces += of_row
            characters += sum(piece.characters for piece in of_row) + _kept(row)
            if len(some) == _BATCH or characters >= _BATCH_CHARACTERS:
                yield some, pieces, characters
                some, pieces, characters = [], [], 0
        if some:
            yield some, pieces, characters

    def _render(self, pieces: Sequence[_Piece]) -> list[Tokens | None]:
        """Return the tokens of each example, None for one that is left out."""
        plain = iter(self._tokenize([piece.text for piece in pieces if not piece.example.messages], plain=True))
        talks = iter(self._tokenize([piece.text for piece in pieces if piece.example.messages]))
        ends = (text for piece in pieces for turn in piece.turns for text in turn)
        borders = iter(self._tokenize([text for text in ends if text is not None]))
        found = []
        for piece in pieces:
            whole = next(talks if piece.example.messages else plain)
            spans = [
                self._span(whole, next(borders), whole if after is None else next(borders)) for _, after in piece.turns
            ]
            found.append(self._label(piece.example, whole, spans))
        return found

    def _tokenize(self, texts: list[str], *, plain: bool = False) -> list[list[int]]:
        """Return the ids of each text; plain ones get the tokenizer's own beginning and a stop token at their ends."""
        if not texts:
            return []
        found = self._tokenizer(texts, add_special_tokens=plain, return_attention_mask=False, verbose=False)
        ids = cast("list[list[int]]", found["input_ids"])
        end = self._tokenizer.eos_token_id
        if not plain or end is None:
            return ids
        return [one if one[-1:] == [end] else [*one, end] for one in ids]

    def _piece(self, example: Example) -> _Piece:
        if not example.messages:
            return _Piece(example, example.text)
        messages = [message.for_template() for message in example.messages]
        tools = json.loads(example.tools) if example.tools else None
        whole = self._apply(messages, tools, example.where, answer_next=example.asks)
        for what, other_messages, other_tools in tool_variants(messages, tools):
            if self._apply(other_messages, other_tools, example.where, answer_next=example.asks) == whole:
                raise _unwritten(what, example.where)
        answers = [number for number, message in enumerate(example.messages) if message.role == "assistant"]
        if example.train_on == "all" or example.asks:
            answers = []
        elif example.train_on != "assistant":
            answers = answers[-1:]
        turns = []
        for number in answers:
            before = self._apply(messages[:number], tools, example.where, answer_next=True)
            is_last = number == len(messages) - 1
            after = None if is_last else self._apply(messages[: number + 1], tools, example.where)
            if number == answers[-1] and not whole.startswith(before):
                raise RunError(
                    "MethodNotApplicable",
                    f"{example.where}: the base model's chat template asks for an answer in other words than it writes"
                    f" one, so trainOn {example.train_on} cannot tell the answer's tokens: choose trainOn all;"
                    " a general set has none but plain texts then",
                )
            if not (whole.startswith(before) and whole.startswith(after or "")):
                raise RunError(
                    "MethodNotApplicable",
                    f"{example.where}: the base model's chat template writes earlier turns differently once the"
                    f" conversation goes on, so trainOn {example.train_on} cannot tell the answer's tokens: choose"
                    " trainOn lastTurn or all; conversations of a general set have one answer each then",
                )
            turns.append((before, after))
        return _Piece(example, whole, tuple(turns))

    def _apply(
        self, messages: list[dict[str, Any]], tools: list[Any] | None, where: str, *, answer_next: bool = False
    ) -> str:
        try:
            template = self._tokenizer.get_chat_template(tools=tools)
            if "strftime_now" in template:
                template = self._clock + template
            text = self._tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=answer_next
            )
        except TemplateSyntaxError as error:
            raise RunError(
                "ModelInvalid",
                f"the base model's chat template is none ({error}): correct it, or choose another base model",
            ) from error
        except (UndefinedError, TypeError) as error:
            raise invalid(
                where,
                f"the base model's chat template needs what the conversation does not have ({error}): add it, or choose"
                " a base model whose chat template does without",
            ) from error
        except TemplateError as error:
            raise invalid(
                where,
                f"the base model's chat template refuses the conversation ({error}): correct it or leave it out",
            ) from error
        return cast(str, text)

    def _span(self, whole: list[int], before: list[int], after: list[int]) -> tuple[int, int]:
        """Return begin and end of an answer in `whole`, by the ids that it has in common with what ends there.

        A token that straddles the border belongs to the answer: every character of it is trained. White space
        that the template writes after the stop token does not: no engine goes on to it.
        """
        begin, end = _common(whole, before), _common(whole, after)
        stop = next((index for index in reversed(range(begin, end)) if whole[index] in self._stop_ids), None)
        if stop is not None and self._is_blank(tuple(whole[stop + 1 : end])):
            end = stop + 1
        return begin, end

    def _label(self, example: Example, whole: list[int], spans: list[tuple[int, int]]) -> Tokens | None:
        """Return an example's tokens with those that count, or None where it is to be left out."""
        too_long = len(whole) > self._max_length
        if too_long and self._overlong == "fail":
            raise invalid(
                example.where,
                f"{len(whole)} tokens, more than maxLength {self._max_length}: raise it, or set overlong to drop or"
                " truncate",
            )
        if too_long and self._overlong == "drop":
            return None
        input_ids = np.asarray(whole, dtype=np.int32)
        labels = input_ids.copy() if example.train_on == "all" else np.full_like(input_ids, IGNORED)
        for begin, end in spans:
            labels[begin:end] = input_ids[begin:end]
        labels[:1] = IGNORED
        tokens = Tokens(input_ids[: self._max_length], labels[: self._max_length])
        if tokens.trained or example.asks:
            return tokens
        if not too_long:
            raise invalid(example.where, "no token to train on: the chat template writes nothing for the answer")
        # The prompt alone fills maxLength.
        return None

    def _count_stop(self, example: Example, tokens: Tokens, into: Rendered) -> None:
        if example.messages and example.messages[-1].role == "assistant":
            into.answers += 1
            into.stopped += self._ends(tokens.labels[tokens.labels != IGNORED])

    def _ends(self, trained: NDArray[np.int32]) -> bool:
        """Whether the last trained token, past white space, is one at which an engine stops."""
        for token in trained[::-1]:
            if int(token) in self._stop_ids:
                return True
            if not self._is_blank((int(token),)):
                return False
        return False


def _unwritten(what: str, where: str) -> RunError:
    return RunError(
        "MethodNotApplicable",
        f"{where}: the base model's chat template does not write {what}, so the model would learn from text without:"
        " choose a base model whose chat template does, or take tools out of the data",
    )


def _clock_macro(day: datetime) -> str:
    """Return a beginning of a template in which `strftime_now` says `day`, at midnight.

    transformers takes no function as a template's variable, so it is one in the template's own language, which
    replaces each of strftime's directives. The empty expression at the end keeps the line break, if any, with which
    the template goes on: one after a block would be taken away.
    """
    directives = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBdHIjmMpSUwWyY"]
    replaced = "".join(f" | replace({one!r}, {day.strftime(one)!r})" for one in directives)
    return "{% macro strftime_now(format) %}{{ format" + replaced + " }}{% endmacro %}{{ '' }}"


def _kept(row: Instance) -> int:
    """Return the characters of a row that are kept beside its tokens."""
    return sum(map(len, row.columns.values())) if isinstance(row, Prompt) else 0


def _common(left: list[int], right: list[int]) -> int:
    """Return the length of the common beginning."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return shorter


def choose_template(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Instance]) -> Template:
    """Return the chat template of the run, and set ours where conversations meet a base without one.

    Raises RunError (ModelInvalid) if such a base has no stop token either: it could not learn to stop.
    """
    if not any(example.messages for row in rows for example in row.parts):
        return Template(source="none")
    own = tokenizer.chat_template is None
    if own:
        if tokenizer.eos_token is None:
            raise RunError(
                "ModelInvalid",
                "the base model's tokenizer has neither a chat template nor an end-of-text token (eos_token), so the"
                " model could not learn to stop: add one to tokenizer_config.json",
            )
        tokenizer.chat_template = OWN_TEMPLATE
    text: Any = tokenizer.get_chat_template()
    return Template(source="lorikeet" if own else "base", sha256=sha256(text.encode()).hexdigest())


def renderers(
    contract: RunContract,
    model: Path,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[tuple[Use, Instances]],
) -> tuple[Template, dict[Use, Renderer]]:
    """Return a run's chat template, and what renders its sources, by what they are for.

    A general set has a tokenizer of its own: where it alone needs a chat template that the base lacks, the result gets
    none. Raises RunError (ModelInvalid).
    """
    template = choose_template(tokenizer, (row for use, rows in sources if use != "general" for row in rows))
    found: dict[Use, Renderer] = {}
    for use, rows in sources:
        by = tokenizer
        if use == "general":
            by = load_tokenizer(model)
            choose_template(by, rows)
        if use not in found:
            found[use] = Renderer.of(read_as(contract, use), model, by)
    return template, found


def render_data(contract: RunContract, model: Path, tokenizer: PreTrainedTokenizerBase, data: Data) -> RenderedData:
    """Return all rows of a run as tokens. Raises RunError.

    Where conversations meet a base model without a chat template, `tokenizer` has ours from then on.
    """
    template, by = renderers(contract, model, tokenizer, data.by_use)
    return RenderedData(template, [(use, by[use].render(rows)) for use, rows in data.by_use])
