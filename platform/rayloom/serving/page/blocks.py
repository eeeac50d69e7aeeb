"""What the page looks like. Gradio is imported only when a page is made (extra ``page``)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from html import escape
from typing import Any, NamedTuple

from rayloom.errors import ServiceError
from rayloom.serving.page.asking import Asker
from rayloom.serving.page.gate import secret_in
from rayloom.serving.page.looks import Turn, shown_talk
from rayloom.serving.page.settings import CONTROLS, Settings
from rayloom.serving.page.talking import model_names, side_by_side, write

TITLE = "Rayloom"
_TALK_S = 3600
"""Seconds that a conversation is kept when nobody goes on with it."""
MOST_AT_ONCE = 40
"""Answers that the page's users wait for at once; more wait in the browser. The service has bounds of its own."""


class Dials(NamedTuple):
    """The components that say how to write; `inputs` of an event begin with them."""

    model: Any
    own: Any
    seed: Any
    stops: Any
    sliders: tuple[Any, ...]

    @property
    def components(self) -> list[Any]:
        """In the order of `read`."""
        return [self.model, self.own, self.seed, self.stops, *self.sliders]


def read(values: tuple[Any, ...]) -> tuple[str | None, Settings]:
    """The model and the settings that the values of `Dials` say."""
    model, own, seed, stops, *sliders = values
    return model or None, Settings(bool(own), tuple(sliders), seed or "", stops or "")


class Page:
    """Builds the page.

    Args:
        asker: Of the service.
        asks_key: Whether there are keys, so that one can sign out.
    """

    def __init__(self, asker: Asker, *, asks_key: bool) -> None:
        import gradio

        self._gr, self._asker, self._asks_key = gradio, asker, asks_key
        self._models: list[Any] = []

    def blocks(self) -> Any:
        """The page, to be mounted."""
        gr = self._gr
        with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
            sign_out = '<a href="logout">Sign out</a>' if self._asks_key else ""
            gr.HTML(f"<h2>{TITLE}</h2>{sign_out}", elem_id="page-head")
            with gr.Tabs(overflow_behavior="wrap"):  # a menu of tabs was seen to swallow one that had room
                for name, fill in (("Write", self._writing), ("Compare", self._comparing), ("Chat", self._chatting)):
                    with gr.Tab(name):
                        fill()
            self._load(blocks)
        blocks.queue(default_concurrency_limit=MOST_AT_ONCE, api_open=False)
        return blocks

    def _writing(self) -> None:
        gr = self._gr
        prompt, context = self._prompt("write")
        with gr.Row():
            start = gr.Button("Write", variant="primary", elem_id="write-start")
            stop = gr.Button("Stop", variant="stop", elem_id="write-stop")
        answer, status = self._answer("write")
        dials = self._dials("write")
        self._on(start, stop, self._write_function(), [prompt, context, *dials.components], [answer, status])

    def _comparing(self) -> None:
        gr = self._gr
        prompt, context = self._prompt("compare")
        with gr.Row():
            start = gr.Button("Compare", variant="primary", elem_id="compare-start")
            stop = gr.Button("Stop", variant="stop", elem_id="compare-stop")
        inputs: list[Any] = [prompt, context]
        outputs: list[Any] = []
        with gr.Row():
            for side in ("left", "right"):
                with gr.Column(min_width=280):
                    outputs += self._answer(side)
                    inputs += self._dials(side).components
        self._on(start, stop, self._compare_function(), inputs, outputs)

    def _chatting(self) -> None:
        gr = self._gr
        # No gr.Chatbot: even without Markdown it shows HTML, and fetches the pictures that a model thinks of.
        talk, turns = gr.HTML(shown_talk([]), elem_id="chat-talk", autoscroll=True), gr.State([], time_to_live=_TALK_S)
        said = gr.Textbox(label="Message", lines=2, max_lines=8, elem_id="chat-said", submit_btn=False)
        with gr.Row():
            send = gr.Button("Send", variant="primary", elem_id="chat-send")
            stop = gr.Button("Stop", variant="stop", elem_id="chat-stop")
            clear = gr.Button("Start over", elem_id="chat-clear")
        status = gr.HTML(elem_id="chat-status")
        dials = self._dials("chat")
        event = gr.on(
            [send.click, said.submit],
            self._chat_function(),
            [said, turns, *dials.components],
            [said, turns, talk, status],
            show_progress="hidden",
            api_visibility="private",
            trigger_mode="always_last",  # what is sent before an answer has ended is sent after it, not lost
        )
        stop.click(None, cancels=[event], api_visibility="private")
        fresh = [[], shown_talk([]), ""]
        clear.click(lambda: fresh, None, [turns, talk, status], cancels=[event], api_visibility="private")

    def _prompt(self, name: str) -> tuple[Any, Any]:
        gr = self._gr
        label = "Prompt, question or document"
        prompt = gr.Textbox(label=label, lines=5, max_lines=20, elem_id=f"{name}-prompt")
        with gr.Accordion("Context", open=False):
            context = gr.Textbox(
                label="Context (for models whose template has a place for it)", lines=3, elem_id=f"{name}-context"
            )
        return prompt, context

    def _answer(self, name: str) -> tuple[Any, Any]:
        gr = self._gr
        answer = gr.Textbox(label="Answer", lines=8, max_lines=24, interactive=False, elem_id=f"{name}-answer")
        return answer, gr.HTML(elem_id=f"{name}-status")

    def _dials(self, name: str) -> Dials:
        gr = self._gr
        model = gr.Dropdown([], label="Model", interactive=True, elem_id=f"{name}-model")
        self._models.append(model)
        with gr.Accordion("Settings", open=False, elem_id=f"{name}-settings"):
            own = gr.Checkbox(True, label="The model's own settings", elem_id=f"{name}-own")
            sliders = tuple(
                gr.Slider(
                    each.low, each.high, each.start, step=each.step, label=each.label, info=each.help,
                    elem_id=f"{name}-{each.parameter}",
                )
                for each in CONTROLS
            )  # fmt: skip
            seed = gr.Textbox(label="Seed (empty: another answer each time)", elem_id=f"{name}-seed")
            stops = gr.Textbox(label="Stop texts, one a line", lines=2, elem_id=f"{name}-stops")
        for slider in sliders:  # whoever moves one wants it to matter
            slider.input(None, None, own, js="() => false", api_visibility="private", show_progress="hidden")
        return Dials(model, own, seed, stops, sliders)

    def _on(self, start: Any, stop: Any, function: Any, inputs: list[Any], outputs: list[Any]) -> None:
        event = start.click(function, inputs, outputs, show_progress="hidden", api_visibility="private")
        stop.click(None, cancels=[event], api_visibility="private")

    def _load(self, blocks: Any) -> None:
        gr, asker, models = self._gr, self._asker, self._models

        async def load(request: Any) -> list[Any]:
            try:
                names = await model_names(asker, _secret(request))
            except ServiceError as error:
                raise gr.Error(escape(str(error))) from None
            return [gr.Dropdown(names, value=names[min(place, len(names) - 1)]) for place in _shown(len(models))]

        blocks.load(self._with_request(load), None, models, api_visibility="private", show_progress="hidden")

    def _write_function(self) -> Any:
        asker = self._asker

        async def written(request: Any, prompt: str, context: str, *values: Any) -> AsyncGenerator[Any]:
            model, settings = read(values)
            steps = write(asker, _asked(prompt, context), settings, model=model, secret=_secret(request))
            async with aclosing(side_by_side([steps])) as shown:
                async for (progress,) in shown:
                    yield progress.text, escape(progress.status)

        return self._with_request(written)

    def _compare_function(self) -> Any:
        asker = self._asker

        async def compared(request: Any, prompt: str, context: str, *values: Any) -> AsyncGenerator[Any]:
            asked, half = _asked(prompt, context), len(values) // 2
            sides = [read(values[:half]), read(values[half:])]
            answers = [write(asker, asked, how, model=model, secret=_secret(request)) for model, how in sides]
            async with aclosing(side_by_side(answers)) as shown:
                async for progresses in shown:
                    yield [text for each in progresses for text in (each.text, escape(each.status))]

        # One event for both: of two events of one click, the second was seen to begin when the first had ended.
        return self._with_request(compared)

    def _chat_function(self) -> Any:
        gr, asker = self._gr, self._asker

        async def chatted(request: Any, said: str, talk: list[Turn], *values: Any) -> AsyncGenerator[Any]:
            model, settings = read(values)
            asked = [*talk, {"role": "user", "content": said}]
            steps = write(asker, {"messages": asked}, settings, model=model, secret=_secret(request))
            left: Any = ""  # of the message: afterwards what is being written there stays
            async with aclosing(side_by_side([steps])) as shown:
                async for (progress,) in shown:
                    turns = [*asked, {"role": "assistant", "content": progress.text}]
                    yield left, turns, shown_talk(turns), escape(progress.status)
                    left = gr.skip()

        return self._with_request(chatted)

    def _with_request(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that Gradio hands the request: it goes by an annotation that cannot be written up front."""
        function.__annotations__["request"] = self._gr.Request
        return function


def _asked(prompt: str, context: str) -> dict[str, str]:
    return {"prompt": prompt, "context": context} if context else {"prompt": prompt}


def _secret(request: Any) -> str | None:
    return secret_in(request.headers.get("cookie", "")) if request else None


def _shown(num_menus: int) -> list[int]:
    """Which model each menu begins with: the first; but the right-hand side of a comparison the second."""
    return [1 if place == 2 else 0 for place in range(num_menus)]
