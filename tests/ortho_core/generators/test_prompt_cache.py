import pytest
import torch

from ortho_core.generators.prompt_cache import PromptCache

PROMPTS = [f"a handwritten {word}" for word in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")]


@pytest.fixture
def batches(generator, monkeypatch) -> list[list[str]]:
    """The batches of prompts that the generator is given."""
    encode, batches = generator.encode_prompts, []
    monkeypatch.setattr(generator, "encode_prompts", lambda prompts: batches.append(list(prompts)) or encode(prompts))
    return batches


def assert_rows(condition, prompts, generator):
    for i, prompt in enumerate(prompts):
        expected = generator.encode_prompts([prompt])
        for name, tensor in condition.tensors.items():
            torch.testing.assert_close(tensor[[i]], expected.tensors[name], rtol=1e-4, atol=1e-4)


def test_a_prompt_is_encoded_once_and_rows_come_in_order(generator, batches):
    cache = PromptCache(generator, batch_size=4)
    prompts = [PROMPTS[1], PROMPTS[0], PROMPTS[1], *PROMPTS[:5]]
    condition = cache(prompts)
    assert [len(batch) for batch in batches] == [4, 4]  # filled up: of one size, whatever is missing
    cache(prompts)
    assert len(batches) == 2
    with torch.no_grad():
        assert_rows(condition, prompts, generator)


def test_a_prompts_rows_do_not_depend_on_what_was_asked_before(generator):
    first, other = PromptCache(generator), PromptCache(generator)
    other(PROMPTS[3:7])
    one, two = first(PROMPTS[:5]), other(PROMPTS[:5])
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_calls_without_a_new_prompt_are_counted_until_there_is_one(generator):
    cache = PromptCache(generator)
    counts = []
    for prompts in (PROMPTS[:2], PROMPTS[:2], PROMPTS[1:2], PROMPTS[:3], PROMPTS[:3]):
        cache(prompts)
        counts.append(cache.quiet_calls)
    assert counts == [0, 1, 2, 0, 1]


def test_the_least_recently_used_goes_first(generator, batches):
    cache = PromptCache(generator, capacity=3, batch_size=1)
    for prompt in (*PROMPTS[:3], PROMPTS[0], PROMPTS[3]):
        cache([prompt])
    batches.clear()
    cache([PROMPTS[0], PROMPTS[2], PROMPTS[3]])
    assert batches == []
    cache([PROMPTS[1]])
    assert batches == [[PROMPTS[1]]]


def test_memory_is_bounded_by_bytes_too_and_never_below_one_call(generator, batches):
    each = sum(t.nbytes for t in generator.encode_prompts(PROMPTS[:1]).tensors.values())
    cache = PromptCache(generator, batch_size=1, most_bytes=2 * each)
    assert len(cache(PROMPTS[:4])) == 4
    cache(PROMPTS[4:5])  # two stay: this one and the one before
    batches.clear()
    cache(PROMPTS[3:5])
    assert batches == []
    cache(PROMPTS[2:3])
    assert len(batches) == 1
