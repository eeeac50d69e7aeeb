"""The page's style, and what it shows of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TypeAlias

Turn: TypeAlias = dict[str, str]
"""``role`` and ``content``, as requests have them."""

CSS = """
.gradio-container { max-width: 60rem !important; margin: 0 auto !important; padding: .75rem !important }
.gradio-container input, .gradio-container textarea, .gradio-container select { font-size: 16px !important }
footer { display: none !important }
#page-head h2 { display: inline; margin-right: 1rem }
.talk { min-height: 12rem; max-height: 60vh; overflow-y: auto; display: flex; flex-direction: column; gap: .5rem }
.talk p { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; padding: .5rem .75rem; border-radius: .5rem }
.talk p.user { align-self: flex-end; max-width: 85%; background: var(--primary-500); color: white }
.talk p.assistant { align-self: flex-start; max-width: 85%; background: var(--background-fill-secondary) }
@media (max-width: 640px) {
  .gradio-container .row { flex-wrap: wrap !important }
  .gradio-container .column { min-width: 100% !important }
}
"""


def shown_talk(turns: Sequence[Turn]) -> str:
    """A conversation as HTML in which all that anybody said is text."""
    said = "".join(f'<p class="{escape(turn["role"])}">{escape(turn["content"])}</p>' for turn in turns)
    return f'<div class="talk">{said}</div>'
