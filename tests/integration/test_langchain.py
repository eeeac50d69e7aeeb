"""LangChain's OpenAI client against a served model, unchanged: chat, streams, batches, JSON and completions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rayloom.generation import TextGenerator
from rayloom.serving.model import TextGeneratorModel
from tests.integration.client_environment import needs, run
from tests.integration.local_server import listening

pytestmark = [pytest.mark.slow, needs("schemathesis")]

QUESTIONS = ["What is a kestrel?", "Who built the mill?"]
PROMPT = "The river flows slowly past"
SCHEMA = {"title": "Age", "description": "How old somebody is.", "type": "object",
          "properties": {"age": {"type": "integer", "maximum": 99}}, "required": ["age"],
          "additionalProperties": False}  # fmt: skip
SCRIPT = """
import asyncio, json, os, sys
from langchain_openai import ChatOpenAI, OpenAI

url, model, questions, prompt, schema = json.loads(os.environ["ASKED"])
common = {"model": model, "base_url": url + "/v1", "api_key": "none", "temperature": 0, "max_retries": 0}
chat, text = ChatOpenAI(**common, max_tokens=8), OpenAI(**common, max_tokens=8)

async def several():
    return [answer.content for answer in await asyncio.gather(*map(chat.ainvoke, questions))]

told = chat.invoke(questions[0])
found = {
    "invoke": told.content,
    "usage": told.usage_metadata["output_tokens"],
    "stream": "".join(chunk.content for chunk in chat.stream(questions[0])),
    "batch": [answer.content for answer in chat.batch(questions)],
    "async": asyncio.run(several()),
    "completion": text.invoke(prompt),
    "completion stream": "".join(text.stream(prompt)),
    "generations": [each[0].text for each in text.generate([prompt, prompt]).generations],
}
if schema:
    asked = ChatOpenAI(**common, max_tokens=64).with_structured_output(schema, method="json_schema")
    found["structured"] = asked.invoke("How old?")
try:
    ChatOpenAI(**(common | {"model": "gpt-4"})).invoke("x")
except Exception as error:
    found["unknown model"] = type(error).__name__
print(json.dumps(found))
"""


def ask(generator: TextGenerator, folder: Path, schema: dict[str, Any] | None) -> dict[str, Any]:
    with listening(TextGeneratorModel(generator, max_time_s=60.0)) as url:
        asked = json.dumps([url, generator.name, QUESTIONS, PROMPT, schema])
        done = run("python", "-c", SCRIPT, folder=folder, ASKED=asked)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def continued(generator: TextGenerator, prompt: str) -> str:
    ids = generator.encoder.tokenizer.encode(prompt)
    seq2seq = generator.family.seq2seq
    written = generator.model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0]
    own = written[1 if seq2seq else len(ids) :].tolist()
    text: str = generator.encoder.tokenizer.decode(own, skip_special_tokens=True)
    return text


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_langchain(request: pytest.FixtureRequest, tmp_path: Path, family: str) -> None:
    generator = TextGenerator(request.getfixturevalue(f"tiny_artifact_{family}"))
    answers = [generator.generate(question, max_new_tokens=8, do_sample=False) for question in QUESTIONS]
    found = ask(generator, tmp_path, SCHEMA if family == "llama" else None)
    assert found["invoke"] == found["stream"] == answers[0]
    assert found["usage"] > 0
    assert found["batch"] == found["async"] == answers
    expected = continued(generator, PROMPT)
    assert found["completion"] == found["completion stream"] == expected
    assert found["generations"] == [expected] * 2
    assert found["unknown model"].endswith("NotFoundError")
    if family == "llama":
        assert isinstance(found["structured"]["age"], int)
