from __future__ import annotations

import functools
import re
import warnings

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from rayloom.config import GenerationConfig
from rayloom.errors import RequestError
from rayloom.generation.transformers_generator import TransformersGenerator
from rayloom.generation.types import GenerationRequest
from tests.unit.generation.conftest import make_generator, make_model, make_tokenizer

PROMPTS = [
    "The river",
    "a cat sat on the mat while another",
    "Question: what is",
    "slept",
    "Was ist das? Ein",
]


def requests_for(generator: TransformersGenerator, **params: object) -> list[GenerationRequest]:
    config = GenerationConfig.model_validate({"max_new_tokens": 12, **params})
    prefix = generator.tokenizer.encode(config.prefix) if config.prefix else []
    return [GenerationRequest(generator.tokenizer.encode(text), config, prefix) for text in PROMPTS]


@functools.cache
def _padding_with_the_end(family: str) -> TransformersGenerator:
    return make_generator(family, "</s>")


def plain_generate(generator: TransformersGenerator, request: GenerationRequest, **kwargs: object) -> list[int]:
    ids = torch.tensor([request.prompt_ids])
    out = generator.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **kwargs
    )[0].tolist()
    new = out[1:] if generator.seq2seq else out[ids.shape[1] :]
    return new[: new.index(1)] if 1 in new else new


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "llama", "t5"])
def test_batched_greedy_equals_unbatched_and_plain_generate(family: str, pad: str) -> None:
    generator = make_generator(family, pad)
    end = generator.tokenizer.eos_token_id
    generator.model.config.eos_token_id = generator.model.generation_config.eos_token_id = end
    requests = requests_for(generator)
    together = generator.generate(requests, batch_size=5)
    alone = [generator.generate([request], batch_size=1)[0] for request in requests]
    assert together == alone
    for request, output in zip(requests, together, strict=True):
        ids = torch.tensor([request.prompt_ids])
        out = generator.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=generator.tokenizer.pad_token_id,
        )[0].tolist()
        new = out[1:] if generator.seq2seq else out[ids.shape[1] :]
        assert output.sequences[0].token_ids == (new[: new.index(end)] if end in new else new)
    assert len({tuple(output.sequences[0].token_ids) for output in together}) > 1


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 1},
        {"encoder_repetition_penalty": 2.0},
        {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True, "num_return_sequences": 2},
        {"num_beams": 2, "early_stopping": "never", "repetition_penalty": 1.3},
        {"min_new_tokens": 6, "exponential_decay_length_penalty": (2, 1.5)},
        {"max_new_tokens": None, "max_length": 20, "min_length": 18},
        {"logprobs": 2},
        {"stop_strings": ["e", "th"]},
        {"forbidden_words": ["cat", "the"]},
        {"prefix": "The old"},
    ],
    ids=lambda params: next(iter(params)) if params.get("max_new_tokens", 1) else "max_length",
)
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_no_parameter_makes_the_batch_visible(family: str, params: dict[str, object]) -> None:
    # Padding with the end token is the harder case: it is a token that models do write.
    generator = _padding_with_the_end(family)
    requests = requests_for(generator, **params)[:4]
    together = generator.generate(requests, batch_size=5)
    for request, output in zip(requests, together, strict=True):
        (alone,) = generator.generate([request], batch_size=1)
        assert [s.token_ids for s in output.sequences] == [s.token_ids for s in alone.sequences]
        assert [(s.text, s.finish_reason) for s in output.sequences] == [
            (s.text, s.finish_reason) for s in alone.sequences
        ]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"max_new_tokens": 9}, {"max_new_tokens": 9}),
        ({"max_new_tokens": None, "max_length": 15}, {"max_length": 15}),
        ({"min_new_tokens": 12}, {"min_new_tokens": 12, "max_new_tokens": 12}),
        ({"max_new_tokens": None, "max_length": 25, "min_length": 25}, {"max_length": 25, "min_length": 25}),
        ({"repetition_penalty": 2.0}, {"repetition_penalty": 2.0, "max_new_tokens": 12}),
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2, "max_new_tokens": 12}),
        ({"encoder_repetition_penalty": 3.0}, {"encoder_repetition_penalty": 3.0, "max_new_tokens": 12}),
        (
            {"num_beams": 4, "length_penalty": 2.0},
            {"num_beams": 4, "length_penalty": 2.0, "max_new_tokens": 12},
        ),
        (
            {"exponential_decay_length_penalty": (1, 1.9)},
            {"exponential_decay_length_penalty": (1, 1.9), "max_new_tokens": 12},
        ),
    ],
    ids=lambda params: next(iter(params)) if params.get("max_new_tokens", 1) else "max_length",
)
def test_parameters_mean_what_they_mean_in_transformers(generator, ours, theirs) -> None:
    for request in requests_for(generator, **ours)[:1]:
        (output,) = generator.generate([request], batch_size=1)
        assert output.sequences[0].token_ids == plain_generate(generator, request, **theirs)


@pytest.mark.parametrize(
    "warp",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"typical_p": 0.5},
        {"eta_cutoff": 0.02},
        {"epsilon_cutoff": 0.02},
        {},
    ],
    ids=lambda warp: next(iter(warp), "none"),
)
def test_sampling_equals_transformers_under_the_same_seed(causal, warp) -> None:
    (request,) = requests_for(causal, do_sample=True, seed=7, **warp)[:1]
    (output,) = causal.generate([request], batch_size=4)
    torch.manual_seed(7)
    ids = torch.tensor([request.prompt_ids])
    out = causal.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        do_sample=True,
        pad_token_id=0,
        **({"top_k": 0} | warp),
    )[0, ids.shape[1] :].tolist()
    assert output.sequences[0].token_ids == (out[: out.index(1)] if 1 in out else out)


def test_a_seed_gives_the_same_text_alone_and_in_company_and_leaves_the_global_state_alone(causal) -> None:
    requests = requests_for(causal, do_sample=True, temperature=1.5, seed=3, num_return_sequences=2)
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    together = causal.generate(requests, batch_size=8)
    assert torch.equal(torch.rand(1), expected)
    assert together[2:3] == causal.generate([requests[2]], batch_size=1)
    first, second = together[2].sequences
    assert first.token_ids != second.token_ids
    other = requests_for(causal, do_sample=True, temperature=1.5, seed=4, num_return_sequences=2)
    assert causal.generate([other[2]], batch_size=1) != together[2:3]


def test_the_models_own_sampling_defaults_do_not_leak_and_are_given_back(causal) -> None:
    request = requests_for(causal)[0]
    clean = causal.generate([request], batch_size=1)
    own = causal.model.generation_config
    noisy = transformers.GenerationConfig(
        do_sample=True,
        temperature=0.1,
        top_k=3,
        repetition_penalty=5.0,
        max_length=3,
        num_beams=4,
        min_length=11,
        no_repeat_ngram_size=1,
        eos_token_id=1,
        bad_words_ids=[[clean[0].sequences[0].token_ids[0]]],
    )
    causal.model.generation_config = noisy
    causal.model.train()
    try:
        assert causal.generate([request], batch_size=1) == clean
        assert causal.model.generation_config is noisy
        assert causal.model.training
    finally:
        causal.model.generation_config = own
        causal.model.eval()


def test_several_end_tokens_of_the_model_are_kept(causal) -> None:
    request = requests_for(causal)[0]
    (plain,) = causal.generate([request], batch_size=1)
    third = plain.sequences[0].token_ids[2]
    own = causal.model.generation_config
    causal.model.generation_config = transformers.GenerationConfig(eos_token_id=[1, third])
    try:
        (output,) = causal.generate([request], batch_size=1)
    finally:
        causal.model.generation_config = own
    ids = plain.sequences[0].token_ids
    assert output.sequences[0].token_ids == ids[: ids.index(third)]
    assert output.sequences[0].finish_reason == "stop"


def test_eos_token_id_of_the_request_ends_the_answer(generator) -> None:
    request = requests_for(generator)[1]
    ids = generator.generate([request], batch_size=1)[0].sequences[0].token_ids
    ended = GenerationRequest(request.prompt_ids, request.config.merged(eos_token_id=ids[3]))
    (output,) = generator.generate([ended], batch_size=1)
    assert output.sequences[0].token_ids == ids[: ids.index(ids[3])]
    assert output.sequences[0].finish_reason == "stop"


def test_stop_strings_cut_the_text_and_stop_each_row_by_itself(generator) -> None:
    plain = generator.generate(requests_for(generator, max_new_tokens=20), batch_size=5)
    stop = re.findall(r"[a-z]{2}", " ".join(output.text for output in plain))[-1]
    stopped = generator.generate(requests_for(generator, max_new_tokens=20, stop_strings=[stop]), batch_size=5)
    for before, after in zip(plain, stopped, strict=True):
        assert after.text == before.text.partition(stop)[0]
        assert stop not in before.text or after.sequences[0].finish_reason == "stop"
    assert any(stop in output.text for output in plain)


def test_a_stop_string_that_begins_in_the_prompt_counts_as_in_transformers(causal) -> None:
    outputs = zip(requests_for(causal), causal.generate(requests_for(causal), batch_size=5), strict=True)
    request, first = next((request, output.text[0]) for request, output in outputs if output.text[0].isascii())
    stop = causal.tokenizer.decode(request.prompt_ids)[-1] + first
    config = request.config.merged(stop_strings=[stop])
    (output,) = causal.generate([GenerationRequest(request.prompt_ids, config)], batch_size=1)
    assert (output.text, output.sequences[0].finish_reason) == ("", "stop")


def test_prefix_starts_the_answer_and_is_not_counted(generator) -> None:
    for request, output in zip(
        requests_for(generator, prefix="The old"),
        generator.generate(requests_for(generator, prefix="The old", max_new_tokens=5), batch_size=3),
        strict=True,
    ):
        (sequence,) = output.sequences
        assert sequence.text.startswith("The old")
        assert sequence.token_ids[: len(request.prefix_ids)] == request.prefix_ids
        assert len(sequence.token_ids) <= len(request.prefix_ids) + 5
        assert output.prompt_ids == request.prompt_ids


def test_prefix_tokens_follow_as_if_the_model_had_written_them(generator) -> None:
    request = requests_for(generator, max_new_tokens=10)[0]
    ids = generator.generate([request], batch_size=1)[0].sequences[0].token_ids
    forced = GenerationRequest(request.prompt_ids, request.config.merged(max_new_tokens=10 - 4), ids[:4])
    assert generator.generate([forced], batch_size=1)[0].sequences[0].token_ids == ids


def test_forbidden_words_never_appear_however_they_are_spelled(generator) -> None:
    requests = requests_for(generator, max_new_tokens=20)
    plain = generator.generate(requests, batch_size=5)
    words = sorted({output.text[at : at + 2].strip() for output in plain for at in (0, 5, 9)} - {""})
    # Characters cut out of multi-byte letters are no words.
    words = [word for word in words if "\ufffd" not in word]
    free = generator.generate(requests_for(generator, max_new_tokens=20, forbidden_words=words), batch_size=5)
    for output in free:
        for word in words:
            start = r"(?<!\w)" if re.match(r"\w", word) else ""
            assert not re.search(start + re.escape(word), output.text), (word, output.text)
    assert [output.text for output in free] != [output.text for output in plain]


def test_logprobs_are_the_models_own(generator) -> None:
    request = requests_for(generator, logprobs=3, repetition_penalty=1.5)[0]
    (sequence,) = generator.generate([request], batch_size=1)[0].sequences
    assert sequence.logprobs is not None
    assert [entry.token_id for entry in sequence.logprobs] == sequence.token_ids
    start = [generator.model.config.decoder_start_token_id] if generator.seq2seq else request.prompt_ids
    inputs = {"input_ids": torch.tensor([request.prompt_ids if generator.seq2seq else start + sequence.token_ids])}
    if generator.seq2seq:
        inputs["decoder_input_ids"] = torch.tensor([start + sequence.token_ids])
    with torch.no_grad():
        logprobs = torch.log_softmax(generator.model(**inputs).logits[0], dim=-1)
    for step, entry in enumerate(sequence.logprobs):
        at = logprobs[len(start) - 1 + step]
        assert entry.logprob == pytest.approx(float(at[entry.token_id]), abs=1e-4)
        assert [token for token, _ in entry.top] == at.topk(3).indices.tolist()


def test_beam_logprobs_add_up_to_the_score(generator) -> None:
    request = requests_for(generator, num_beams=3, logprobs=0, length_penalty=0.0, min_new_tokens=12)[0]
    (sequence,) = generator.generate([request], batch_size=1)[0].sequences
    assert sequence.finish_reason == "length"
    assert sum(entry.logprob for entry in sequence.logprobs) == pytest.approx(sequence.score, abs=1e-3)


def test_max_time_ends_with_what_there_is(causal) -> None:
    request = requests_for(causal, max_new_tokens=85, min_new_tokens=85, max_time=0.000001)[0]
    (sequence,) = causal.generate([request], batch_size=1)[0].sequences
    assert sequence.finish_reason == "time"
    assert 1 <= len(sequence.token_ids) < 85


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"required_words": ["x"]}, "required_words"),
        ({"json_schema": {"type": "object"}}, "json_schema"),
        ({"regex": "a+"}, "regex"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beam_groups"),
        ({"max_new_tokens": None, "max_length": 1}, "max_length"),
        ({"min_length": 70}, "at least"),
        ({"stop_strings": [""]}, "stop_strings"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(generator, params, named) -> None:
    with pytest.raises(RequestError, match=named):
        generator.generate(requests_for(generator, **params), batch_size=2)


def test_positions_bound_prompt_and_answer(causal) -> None:
    with pytest.raises(RequestError, match="96 positions"):
        causal.generate([GenerationRequest([5] * 96)], batch_size=1)
    config = GenerationConfig(max_new_tokens=50, eos_token_id=0)
    long, short = GenerationRequest([5] * 90, config), GenerationRequest([5, 6, 7], config)
    outputs = causal.generate([long, short], batch_size=2)
    assert [len(o.sequences[0].token_ids) for o in outputs] == [6, 50]
    assert outputs[0].sequences[0].finish_reason == "length"
    with pytest.raises(RequestError, match="only 6"):
        causal.generate([GenerationRequest([5] * 90, GenerationConfig(min_new_tokens=7))], batch_size=1)


def test_an_empty_prompt_is_refused(generator) -> None:
    with pytest.raises(RequestError, match="empty"):
        generator.generate([GenerationRequest([])], batch_size=1)


def test_the_default_length_is_the_generators() -> None:
    generator = make_generator("gpt2", default_new_tokens=4)
    request = GenerationRequest([5, 6], GenerationConfig(eos_token_id=0))
    assert len(generator.generate([request], batch_size=1)[0].sequences[0].token_ids) == 4


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21 reads it
def test_a_peft_model_generates_and_keeps_its_generation_config() -> None:
    tokenizer = make_tokenizer()
    model = make_model("llama", tokenizer)
    plain = TransformersGenerator(model, tokenizer, seq2seq=False)
    expected = plain.generate(requests_for(plain), batch_size=2)
    own = model.generation_config
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted = TransformersGenerator(peft, tokenizer, seq2seq=False)
    assert adapted.generate(requests_for(adapted), batch_size=2) == expected
    assert peft.generation_config is own
    assert model.generation_config is own


def test_nothing_is_warned_or_logged(causal, capfd) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        causal.generate(requests_for(causal, do_sample=True, num_beams=2, stop_strings=["e"]), batch_size=3)
    assert capfd.readouterr() == ("", "")
