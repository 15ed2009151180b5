import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import FILLER, PromptCache, encode_with, encoded_rows
from ortho_core.generators.prompt_store import ENCODED_AT_ONCE, PromptStore
from tests.small_pipelines import save_stable_diffusion

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


def stored(generator, model, folder, prompts):
    """A store with the rows of some prompts."""
    store = PromptStore.of(folder, model, "float32", "cpu")
    rows = encoded_rows(lambda texts: encode_with(generator, texts), prompts, ENCODED_AT_ONCE, FILLER)
    assert store.publish(store.name_of(0, prompts), rows)
    return store


@pytest.fixture(params=["tiny-turbo", "stable-diffusion"])
def pipeline(request, tiny_turbo, tmp_path):
    """Models with and without a frame in their condition."""
    place = tiny_turbo if request.param == "tiny-turbo" else save_stable_diffusion(tiny_turbo, tmp_path / "model")
    model = ModelFolder.open(place)
    return model, load_generator(model)


def test_a_store_changes_no_bit_at_any_size_and_what_it_has_is_not_encoded(pipeline, tmp_path, monkeypatch):
    model, generator = pipeline
    store, batches = stored(generator, model, tmp_path / "store", PROMPTS[:5]), []
    for one in (generator, generator.at((generator.image_size[0] * 2, generator.image_size[1]))):
        expected = PromptCache(one)([*PROMPTS[3:7], PROMPTS[0]])
        encode = one.encode_prompts
        with monkeypatch.context() as patch:
            patch.setattr(one, "encode_prompts", lambda texts, encode=encode: batches.append(texts) or encode(texts))
            cache = PromptCache(one, store)
            found = cache([*PROMPTS[3:7], PROMPTS[0]])
            assert cache.quiet_calls == 0
            cache(PROMPTS[1:3])
            assert cache.quiet_calls == 1
        assert batches.pop() == [*PROMPTS[5:7], *[""] * 6]
        assert batches == []
        assert found.tensors.keys() == expected.tensors.keys()
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_an_embedding_does_not_depend_on_autocast(generator):
    expected = PromptCache(generator)(PROMPTS[:2])
    with torch.autocast("cpu", torch.bfloat16):
        found = PromptCache(generator)(PROMPTS[:2])
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_a_cache_over_a_damaged_store_is_refused(generator, tiny_turbo, tmp_path):
    store = stored(generator, ModelFolder.open(tiny_turbo), tmp_path, PROMPTS[:2])
    (name,) = store.names()
    (store.folder.path / name).write_bytes(b"notes")
    with pytest.raises(UserError, match=r"is damaged \(it has no header of the safetensors format\)"):
        PromptCache(generator, store)
