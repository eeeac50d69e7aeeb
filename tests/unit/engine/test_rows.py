"""The rows' tables: forks, growth, closing, preemption; against one plainly kept list per sequence."""

from __future__ import annotations

import random

import torch

from rayloom.engine.choosing import choose
from rayloom.engine.processors import process
from rayloom.engine.request import EngineRequest, Params
from rayloom.engine.rows import RowStates
from tests.unit.engine.rows_oracle import VOCAB, expected, random_request


def test_any_history_of_a_slot_gives_what_a_fresh_one_would() -> None:
    """Open, append, fork and close at random; rows always equal transformers on plain lists."""
    for seed in range(8):
        _live(random.Random(seed), torch.Generator().manual_seed(seed))


def _live(draw: random.Random, generator: torch.Generator) -> None:
    num_slots = 6
    states = RowStates(num_slots, VOCAB, 48)
    running: dict[int, tuple[EngineRequest, list[int]]] = {}
    for _ in range(60):
        action = draw.choice(["open", "append", "append", "fork", "close", "check"])
        free = [slot for slot in range(num_slots) if slot not in running]
        if action == "open" and free:
            slot, request = draw.choice(free), random_request(draw, share=0.4)
            running[slot] = (request, list(request.start_ids))
            states.open(slot, request, request.start_ids, 0)
        elif action == "append":
            growing = [slot for slot, (request, tokens) in running.items() if len(tokens) < request.max_length - 1]
            new = [draw.randrange(VOCAB // 3) for _ in growing]
            states.append(growing, new)
            for slot, token in zip(growing, new, strict=True):
                running[slot][1].append(token)
        elif action == "fork" and running:
            targets = draw.sample(range(num_slots), draw.randint(1, num_slots))
            pairs = [(target, draw.choice(list(running))) for target in targets]
            states.copy(pairs)
            copies = {target: (running[source][0], list(running[source][1])) for target, source in pairs}
            running |= copies
        elif action == "close" and running:
            slot = draw.choice(list(running))
            del running[slot]
            states.close(slot)
        elif action == "check" and running:
            _check(states, running, draw, generator)


def _check(
    states: RowStates,
    running: dict[int, tuple[EngineRequest, list[int]]],
    draw: random.Random,
    generator: torch.Generator,
) -> None:
    slots = draw.sample(list(running), len(running))
    scores_RV = 2 * torch.randn(len(slots), VOCAB, generator=generator)
    expected_RV = torch.stack([expected(*running[slot], scores) for slot, scores in zip(slots, scores_RV, strict=True)])
    processed_RV = process(scores_RV, torch.tensor(slots), states)
    assert torch.equal(processed_RV.isneginf(), expected_RV.isneginf())
    torch.testing.assert_close(processed_RV, expected_RV, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_a_preempted_sequence_goes_on_as_if_nothing_had_happened() -> None:
    draw = random.Random(4)
    for _ in range(20):
        request = random_request(draw, share=0.4)
        tokens = [*request.start_ids, *(draw.randrange(VOCAB) for _ in range(request.params.max_new_tokens - 1))]
        stayed, returned = RowStates(2, VOCAB, 48), RowStates(5, VOCAB, 48)
        stayed.open(1, request, request.start_ids, 2)
        for token in tokens[len(request.start_ids) :]:
            stayed.append([1], torch.tensor([token]))
        returned.open(4, request, tokens, 2)
        scores_RV = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(draw.randrange(2**31)))
        first_RV, second_RV = process(scores_RV, [1], stayed), process(scores_RV, [4], returned)
        assert torch.equal(first_RV, second_RV)
        assert torch.equal(choose(first_RV, [1], stayed), choose(second_RV, [4], returned))


def test_forked_answers_differ_once_they_have_their_own_index() -> None:
    request = EngineRequest(start_ids=(3,), params=Params(max_new_tokens=9, do_sample=True, num_return_sequences=40))
    states = RowStates(40, VOCAB, 16)
    states.open(0, request, [3], 0)
    states.copy([(slot, 0) for slot in range(1, 40)])
    scores_RV = torch.zeros(40, VOCAB)
    slots = list(range(40))
    assert len(set(choose(scores_RV, slots, states).tolist())) == 1
    states.reindex(slots, slots)
    assert len(set(choose(scores_RV, slots, states).tolist())) > 20
    states.copy([])


def test_ids_out_of_the_vocabulary_are_left_out() -> None:
    params = Params(
        max_new_tokens=4,
        min_new_tokens=3,
        eos_token_ids=(VOCAB + 5, 2),
        suppress_tokens=(-1, VOCAB, 7),
        begin_suppress_tokens=(VOCAB,),
    )
    states = RowStates(1, VOCAB, 16)
    states.open(0, EngineRequest(start_ids=(3,), params=params), [3], 0)
    scores_RV = torch.zeros(1, VOCAB)
    assert process(scores_RV, [0], states)[0].isneginf().nonzero()[:, 0].tolist() == [2, 7]
