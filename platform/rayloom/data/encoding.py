"""Rows and questions to token ids: one piece of code for training, evaluation and serving."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from transformers import PreTrainedTokenizerBase

from rayloom.data.columns import Columns
from rayloom.data.dataset import IGNORED, Example
from rayloom.data.rows import Row
from rayloom.data.templates import Message, PromptInput, PromptTemplate
from rayloom.data.tokenization import Texts
from rayloom.errors import DataError, RequestError

_Render = Callable[[str], list[int]]
_ROLES = ("system", "user", "assistant")


class Dropped(StrEnum):
    """Why a row gives no example."""

    EMPTY_INPUT = "empty input"
    EMPTY_TARGET = "nothing of the target is left"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model sees it.

    Args:
        ids: At most max_input_length ids, special tokens included.
        truncated: Something was cut to make it fit.
    """

    ids: list[int]
    truncated: bool = False


class Encoder:
    """Turns questions into prompt ids and rows into examples.

    Args:
        tokenizer: Any transformers tokenizer with an end-of-sequence token.
        template: The prompt template of the run or artifact.
        max_input_length: Ids of a prompt, or of one block of a language modelling text.
        max_target_length: Ids of a target, its end included.

    Raises:
        ModelError: The tokenizer has no end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        *,
        max_input_length: int,
        max_target_length: int,
    ) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.max_input_length, self.max_target_length = max_input_length, max_target_length
        self._texts = Texts(tokenizer, seq2seq=template.seq2seq)

    def prompt_ids(self, asked: PromptInput) -> list[int]:
        """The ids of a prompt; see :meth:`prompt`."""
        return self.prompt(asked).ids

    def prompt(self, asked: PromptInput) -> EncodedPrompt:
        """A prompt as the model sees it, cut to max_input_length.

        The context is cut first, then the input, so that the template stays whole; of a conversation the
        oldest turns go first; a raw language modelling prompt loses its beginning. The forced ``prefix`` is
        not part of it.

        Raises:
            RequestError: The prompt is empty, or has a context or messages that the template cannot take.
            DataError: The template alone does not fit into max_input_length.
        """
        if asked.messages is not None:
            return self._messages_prompt(asked)
        if not asked.text.strip():
            raise RequestError("the prompt is empty")
        if self.template.task == "language-modeling":
            if asked.context is not None:
                raise RequestError("this model continues plain text: it takes no context")
            room = self.max_input_length - len(self._texts.prefix)
            ids = self._texts.ids(asked.text)
            return EncodedPrompt(self._texts.sequence(ids[-room:]), truncated=len(ids) > room)
        if asked.context is not None and self.template.context_prompt is None:
            raise RequestError(f"the prompt of this {self.template.task} model has no place for a context")
        return self._text_prompt(asked.text, asked.context)

    def prefix_ids(self, text: str) -> list[int]:
        """Ids of a forced start of the answer, as a target starts in training."""
        if self.template.seq2seq:
            return self._texts.ids(text)
        return self._texts.continuation(self._with_target_prefix(text, strip_end=False))

    def encode(self, row: Row, columns: Columns) -> Example | None:
        """One row as an example (language modelling: its first block); None if nothing of it is left."""
        examples, _ = self.examples(row, columns)
        return examples[0] if examples else None

    def examples(self, row: Row, columns: Columns) -> tuple[list[Example], Dropped | None]:
        """All examples of one row, or why there are none.

        Raises:
            DataError: A cell that cannot be used.
            RequestError: Messages that the chat template does not take.
        """
        if self.template.task == "language-modeling":
            blocks = self._blocks(columns.input_text(row))
            return blocks, None if blocks else Dropped.EMPTY_INPUT
        if self.template.task == "chat":
            example = self._conversation_example(columns.conversation(row))
            return ([example], None) if example else ([], Dropped.EMPTY_TARGET)
        asked, target = self.template.input_of(row, columns), self.template.target_of(row, columns)
        if not asked.text.strip():
            return [], Dropped.EMPTY_INPUT
        example = self._pair_example(asked, target) if target.strip() else None
        return ([example], None) if example else ([], Dropped.EMPTY_TARGET)

    def _pair_example(self, asked: PromptInput, target: str) -> Example | None:
        prompt = self.prompt(asked)
        if self.template.seq2seq:
            body, end = self._texts.ids(target), [self._texts.eos_id]
        elif self.template.chat:
            body, end = self._chat_answer(asked, target.strip())
        else:
            body, end = self._texts.continuation(self._with_target_prefix(target)), [self._texts.eos_id]
        room = self.max_target_length - len(end)
        kept = body[: max(room, 0)]
        if not kept:
            return None
        answer = [*kept, *end]
        cut = len(body) > room
        if self.template.seq2seq:
            return Example(prompt.ids, answer, prompt.truncated, cut)
        labels = [*[IGNORED] * len(prompt.ids), *answer]
        return Example([*prompt.ids, *answer], labels, prompt.truncated, cut)

    def _with_target_prefix(self, target: str, *, strip_end: bool = True) -> str:
        if not self.template.target_prefix:
            return target
        return self.template.target_prefix + (target.strip() if strip_end else target.lstrip())

    def _chat_answer(self, asked: PromptInput, target: str) -> tuple[list[int], list[int]]:
        """Ids of an answer and of its end of turn."""
        messages = self.template.conversation(asked.text, asked.context)
        before = self._texts.chat_text(messages, answer_next=True)
        turn: Message = {"role": "assistant", "content": target}
        whole = self._texts.chat_text([*messages, turn], answer_next=False)
        start = before + target
        # Some generation prompts are no part of a finished turn: then only the end is taught.
        rest = whole[len(start) :] if whole.startswith(start) else ""
        end_text, end_ids = self._texts.end_of_turn(rest)
        return self._texts.continuation(target), [*(self._texts.ids(end_text) if end_text else []), *end_ids]

    def _conversation_example(self, messages: list[Message]) -> Example | None:
        """A conversation with loss on every assistant turn, cut at the end to both limits together."""
        last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
        turns = self.template.with_system(messages[: last + 1])
        turns = [{**turn, "content": turn["content"].strip()} for turn in turns]
        input_ids: list[int] = []
        labels: list[int] = []
        for text, extra, is_learned in self._segments(turns):
            if not text and not extra:
                continue
            ids = [*(self._texts.continuation(text) if input_ids else self._texts.ids(text)), *extra]
            input_ids += ids
            labels += ids if is_learned else [IGNORED] * len(ids)
        limit = self.max_input_length + self.max_target_length
        cut = len(input_ids) > limit
        input_ids, labels = input_ids[:limit], labels[:limit]
        if all(label == IGNORED for label in labels[1:]):
            return None
        return Example(input_ids, labels, target_truncated=cut)

    def _segments(self, turns: list[Message]) -> list[tuple[str, list[int], bool]]:
        """A conversation as (text, ids to put after it, learned) in turn."""
        segments: list[tuple[str, list[int], bool]] = []
        answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
        whole = self._texts.chat_text(turns, answer_next=False)
        position = 0
        for place in answers:
            content, is_last = turns[place]["content"], place == answers[-1]
            before = self._texts.chat_text(turns[:place], answer_next=True)
            after = self._texts.chat_text(turns[: place + 1], answer_next=False)
            if not (whole.startswith(after) and after.startswith(before + content)):
                if len(answers) > 1:
                    raise RequestError(
                        "the model's chat template rewrites earlier turns, so a conversation cannot be "
                        "learned as one sequence; give one row per assistant turn"
                    )
                after = before + content
            end, extra = self._texts.end_of_turn(after[len(before) + len(content) :], is_last=is_last)
            learned = content + end if content else ""
            segments.append((before[position:], [], False))
            segments.append((learned, extra if content else [], True))
            position = len(before) + len(learned)
        return segments

    def _blocks(self, text: str) -> list[Example]:
        """A document in blocks that overlap by one token: every token but the first is predicted once."""
        if not text.strip():
            return []
        ids = [*self._texts.sequence(self._texts.ids(text)), self._texts.eos_id]
        size = self.max_input_length
        blocks = [ids[start : start + size] for start in range(0, len(ids) - 1, size - 1)]
        return [Example(block, block) for block in blocks]

    def _text_prompt(self, text: str, context: str | None) -> EncodedPrompt:
        ids = self._rendered(text, context)
        if len(ids) <= self.max_input_length:
            return EncodedPrompt(ids)
        if context:
            shorter = self._shorten(context, lambda part: self._rendered(text, part), ids)
            if shorter:
                return EncodedPrompt(shorter, truncated=True)
        ids = self._rendered(text, None)
        if len(ids) <= self.max_input_length:
            return EncodedPrompt(ids, truncated=True)
        shorter = self._shorten(text, lambda part: self._rendered(part, None), ids)
        return EncodedPrompt(shorter or self._no_room(), truncated=True)

    def _rendered(self, text: str, context: str | None) -> list[int]:
        if self.template.chat:
            conversation = self.template.conversation(text, context)
            return self._texts.ids(self._texts.chat_text(conversation, answer_next=True))
        return self._texts.sequence(self._texts.ids(self.template.render(text, context)))

    def _messages_prompt(self, asked: PromptInput) -> EncodedPrompt:
        messages = _checked(asked)
        if not self.template.chat:
            raise RequestError("this model has no chat template: give a prompt instead of messages")
        messages = self.template.with_system(messages)
        num_system = int(messages[0]["role"] == "system")
        system, turns = messages[:num_system], messages[num_system:]
        starts = [0, *(place for place in range(1, len(turns)) if turns[place]["role"] == "user")]

        @cache
        def from_start(number: int) -> list[int]:
            kept = [*system, *turns[starts[number] :]]
            return self._texts.ids(self._texts.chat_text(kept, answer_next=True))

        def fits(number: int) -> bool:
            return len(from_start(number)) <= self.max_input_length

        if fits(0):
            return EncodedPrompt(from_start(0))
        # Looked for by halves: turn by turn, a long conversation would hold up whoever waits for it for minutes.
        first = bisect_left(range(len(starts)), True, lo=1, key=fits)
        if first < len(starts):
            return EncodedPrompt(from_start(first), truncated=True)
        last = from_start(len(starts) - 1)
        shorter = self._shorten(turns[-1]["content"], lambda part: self._last_turn(system, part), last)
        return EncodedPrompt(shorter or self._no_room(), truncated=True)

    def _last_turn(self, system: list[Message], content: str) -> list[int]:
        messages = [*system, {"role": "user", "content": content}]
        return self._texts.ids(self._texts.chat_text(messages, answer_next=True))

    def _shorten(self, part: str, render: _Render, ids: Sequence[int]) -> list[int] | None:
        limit = self.max_input_length
        return self._texts.shorten(part, render, over=len(ids) - limit, limit=limit)

    def _no_room(self) -> list[int]:
        raise DataError(
            f"the prompt template alone fills max_input_length {self.max_input_length} and leaves no room "
            "for the input; raise dataset.max_input_length"
        )


def _checked(asked: PromptInput) -> list[Message]:
    messages = list(asked.messages or ())
    if asked.text or asked.context:
        raise RequestError("give a prompt or messages, not both")
    if not messages or messages[-1].get("role") != "user":
        raise RequestError("messages must end with one from the user")
    for message in messages:
        if message.get("role") not in _ROLES or not isinstance(message.get("content"), str):
            raise RequestError(f"a message needs a role ({', '.join(_ROLES)}) and a content that is text")
    return messages
