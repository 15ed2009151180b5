"""Prompts by their hashes."""

import hashlib

import numpy as np

from ortho_core.generators.prompt_keys import SeenNumbers, numbers_of, prompt_key


def test_a_key_is_the_sha_256_and_its_number_the_first_bits():
    assert prompt_key("a cät") == hashlib.sha256("a cät".encode()).digest()
    assert int(numbers_of(["a", "a cät"])[1]) == int(hashlib.sha256("a cät".encode()).hexdigest()[:16], 16)
    assert numbers_of([]).dtype == np.uint64


def test_each_number_is_new_once_and_takes_eight_bytes():
    drawn = np.random.default_rng(0)
    known = drawn.integers(0, 5000, 700).astype(np.uint64)
    seen, expected = SeenNumbers(known), set(known.tolist())
    for count in (0, 1, 3, 2000, 5, 400, 4000, 1, 1):
        some = drawn.integers(0, 9000, count).astype(np.uint64)
        fresh = []
        for number in some.tolist():
            fresh.append(number not in expected)
            expected.add(number)
        assert seen.fresh(some).tolist() == fresh
        assert len(seen) == len(expected)
    assert sum(run.nbytes for run in seen._runs) == 8 * len(expected)
    assert len(seen._runs) < 8
