"""JSON, YAML and TOML from outside: within limits, or one line that says which."""

import json

import pytest

from ortho_core.errors import UserError, needed
from ortho_core.pairs.limits import MAX_PROMPT_LENGTH
from ortho_core.text.parsing import (
    MOST_DEPTH,
    NotParsedError,
    json_file,
    json_object,
    parse_json,
    parse_toml,
    parse_yaml,
)

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{','.join(['*' + chr(97 + i)] * 9)}]}}\n" for i in range(12)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value: line 1 column 1"),
        (b"\xff", r"not text in UTF-8 \(byte 0\)"),
        ("[" * 100_000, f"it is nested deeper than {MOST_DEPTH} levels"),
        ("[" * 65 + "]" * 65, f"it is nested deeper than {MOST_DEPTH} levels"),
        ("9" * 5000, r"Exceeds the limit \(4300 digits\) for integer string conversion: value has 5000 digits$"),
        ("[" + "9" * 301 + "]", "a whole number has more than 300 digits"),
    ],
)
def test_what_is_no_json_or_costs_too_much_is_said_in_one_line(text, why):
    with pytest.raises(NotParsedError, match=f"^p.json is not JSON: {why}"):
        parse_json(text, "p.json")


def test_json_within_the_limits_is_what_python_makes_of_it(tmp_path):
    for value in ([[]] * 500, {"a": [1, None, "é\ud83d"]}, "x" * MAX_PROMPT_LENGTH, 10**299, [-(10**299)]):
        assert parse_json(json.dumps(value)) == value
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]
    deep = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert json.dumps(parse_json(deep)) == deep
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert json_file(tmp_path / "a.json") == {"a": 1}


def test_an_object_is_one_and_can_be_written_again():
    with pytest.raises(NotParsedError, match=r"^it holds \[1\]; accepted: a JSON object$"):
        json_object("[1]", "it")
    for text in (r'{"a": "\ud83d"}', r'{"\udc00": 1}'):
        with pytest.raises(NotParsedError, match=r"^it is not JSON: .*surrogates not allowed$"):
            json_object(text, "it")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "it has more than 50000 values, aliases expanded"),
        (MERGES, "it has more than 50000 values, aliases expanded"),
        ("a: &a x\nb: [" + "*a," * 1001 + "]", "it has more than 1000 aliases"),
        ("a: &a [*a]", "it is nested deeper than 64 levels"),
        ("[" * 5000, "it is nested deeper than 64 levels"),
        ("x" * (256 << 10 | 1), "it has 262145 bytes; accepted: 262144"),
        ("a: 1\na: 2", "the key 'a' appears twice"),
        ("1: x\n'1': y", "the key '1' appears twice"),
        ("? [1]\n: 2", "while constructing a mapping"),
        ("x: 0x" + "f" * 5000, "a number has more than 300 digits"),
        ("x: " + "1:" * 500 + "1", "a number has more than 300 digits"),
        ("!!set {a}", "it holds a set; accepted: numbers, texts, lists and mappings"),
        ("!!python/object/apply:os.system [x]", "could not determine a constructor"),
        ('x: "\\ud83d"', ".*surrogates not allowed"),
        ("\0", "unacceptable character"),
    ],
)
def test_what_is_no_yaml_or_costs_too_much_is_said_in_one_line(text, why):
    with pytest.raises(NotParsedError, match=f"^c.yaml is not YAML: {why}") as refused:
        parse_yaml(text, "c.yaml")
    assert "\n" not in str(refused.value)


def test_yaml_is_plain_values():
    text = "base: &base {lr: 1e-4, n: 3}\nb: {<<: *base, n: 4}\nd: 2026-11-26\n7: [yes, null, .5]\ne: *base\n"
    found = parse_yaml(text)
    assert found == {
        "base": {"lr": "1e-4", "n": 3},
        "b": {"lr": "1e-4", "n": 4},
        "d": "2026-11-26",
        "7": [True, None, 0.5],
        "e": {"lr": "1e-4", "n": 3},
    }
    assert found["e"] is not found["base"]


def test_toml_and_the_line_of_a_user_error():
    assert parse_toml("[a]\nb = 1") == {"a": {"b": 1}}
    with pytest.raises(NotParsedError, match=r"^t is not TOML: it holds a date; accepted: numbers"):
        parse_toml("a = 2026-11-26", "t")
    with pytest.raises(UserError, match=r"^t is not TOML: .*; correct it$"):
        needed(parse_toml, "a = ", "t", remedy="correct it")
