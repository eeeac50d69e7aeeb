"""``rayloom generate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayloom.config import EngineKind, WeightPrecision
from rayloom.errors import RequestError

if TYPE_CHECKING:
    from rayloom.generation import TextGenerator


def generate(
    model: Annotated[
        str,
        typer.Argument(
            help="Artifact (folder or URI), version in the registry (qa@production), model folder or hub name.",
            show_default=False,
        ),
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Questions or prompts. Without any: --file, or standard input.", show_default=False),
    ] = None,
    context: Annotated[str | None, typer.Option(help="Context of the question.", show_default=False)] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Read prompts from a text file, one per line.", show_default=False),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Write the text while it is generated.")] = False,
    param: Annotated[
        list[str],
        typer.Option(
            "--param",
            "-p",
            metavar="NAME=VALUE",
            help="Any generation parameter, such as num_beams=4. Repeatable.",
        ),
    ] = [],  # noqa: B006 - typer copies it
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens to generate.", show_default=False)] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample at this temperature.", show_default=False)] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among the likeliest tokens of this mass.", show_default=False)
    ] = None,
    num_beams: Annotated[int | None, typer.Option(help="Beam width.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.", show_default=False)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Most prompts in flight.")] = 16,
    precision: Annotated[
        WeightPrecision, typer.Option(help="Of the weights. bf16 and int8 are faster on CPUs; some answers differ.")
    ] = "fp32",
    engine: Annotated[
        EngineKind,
        typer.Option(help="What computes. vllm: decoder models, from the environment that RAYLOOM_VLLM_PYTHON names."),
    ] = "rayloom",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 …", show_default="the first GPU if there is one")
    ] = None,
) -> None:
    """Answer questions or continue prompts with a model.

    A prompt that starts with a dash goes behind ``--``. Several answers are parted by an empty line.
    """
    common = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "num_beams": num_beams,
        "seed": seed,
    }
    params = _params(param, common)
    texts = _prompts(prompts or [], file)
    from rayloom.generation import TextGenerator
    from rayloom.registry import locate

    generator = TextGenerator(locate(model), device=device, precision=precision, engine=engine)
    generator.parameters(params)  # refuse before reading or writing anything
    if stream:
        _stream(generator, texts, context, params)
    else:
        _answer(generator, texts, context, params, batch_size)


def _answer(
    generator: TextGenerator, texts: list[str], context: str | None, params: dict[str, Any], batch_size: int
) -> None:
    answers = generator.generate_batch(texts, contexts=[context] * len(texts), batch_size=batch_size, **params)
    groups = [answer if isinstance(answer, list) else [answer] for answer in answers]
    is_long = any("\n" in text for group in groups for text in group) or any(len(group) > 1 for group in groups)
    for number, group in enumerate(groups):
        if number and is_long:
            typer.echo("")
        for text in group:
            typer.echo(text)


def _stream(generator: TextGenerator, texts: list[str], context: str | None, params: dict[str, Any]) -> None:
    for number, text in enumerate(texts):
        if number:
            typer.echo("")
        for piece in generator.stream(text, context=context, **params):
            typer.echo(piece, nl=False)
            sys.stdout.flush()
        typer.echo("")


def _params(pairs: list[str], common: dict[str, Any]) -> dict[str, Any]:
    import yaml

    from rayloom.config import parse_yaml

    params = {name: value for name, value in common.items() if value is not None}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not separator or not name:
            raise RequestError(f"--param {pair!r}: expected NAME=VALUE, such as num_beams=4")
        if name in params:
            raise RequestError(f"--param {pair!r}: {name} is given twice")
        try:
            params[name] = parse_yaml(text)
        except yaml.YAMLError:
            raise RequestError(f"--param {pair!r}: the value is not valid YAML; put quotes around text") from None
    if ("temperature" in common and common["temperature"] is not None) or common.get("top_p") is not None:
        params.setdefault("do_sample", True)  # the two options say "sample"; --param is as strict as everywhere
    return params


def _prompts(prompts: list[str], file: Path | None) -> list[str]:
    if prompts and file is not None:
        raise RequestError("give prompts or --file, not both")
    if prompts:
        return prompts
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"--file {file}: cannot be read as UTF-8 text ({error})") from None
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            raise RequestError(f"--file {file}: no prompt in it (one per line)")
        return lines
    if sys.stdin is None or sys.stdin.isatty():
        raise RequestError("no prompt: give one as an argument, with --file, or on standard input")
    text = sys.stdin.read().strip()
    if not text:
        raise RequestError("no prompt: standard input is empty")
    return [text]
