"""What is shown and kept of texts from outside: no secret of a URL, no control character, nothing that cannot be encoded."""

import pytest
from pydantic import BaseModel

from ortho_core.errors import BadRow, RunFailed, UserError
from ortho_core.marks import decides, settings
from ortho_core.storage.location import Location, ModelPath
from ortho_core.storage.open import open_store
from ortho_core.text.plain_text import message, one_line, printable, redacted, redacted_all

SIGNED = "https://alice:s3cret@store:9000/set/a.tar?X-Amz-Signature=s3cret&X-Amz-Expires=60#token=s3cret"
SHOWN = "https://user:***@store:9000/set/a.tar?X-Amz-Signature=***&X-Amz-Expires=***#token=***"


class Job(BaseModel):
    pairs: Location | None = decides(None, description="pairs")
    model: ModelPath | None = decides(None, description="model")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (SIGNED, SHOWN),
        (f'cannot open "{SIGNED}": no', f'cannot open "{SHOWN}": no'),
        (SIGNED.replace("&", "&amp;"), SHOWN.replace("&", "&amp;")),
        ("http://t0ken@host/x", "http://user:***@host/x"),
        ("simplecache::s3://k:s3cret@b/x", "simplecache::s3://user:***@b/x"),
        ("http:/alice:s3cret@host", "http:/user:***@host"),
        ("s3://bucket/a@2x.png and C:/a?b", "s3://bucket/a@2x.png and C:/a?b"),
        ("http://host:80/set.parquet#12", "http://host:80/set.parquet#12"),
        ("someone@example.org wrote a=b?c=d", "someone@example.org wrote a=b?c=d"),
    ],
)
def test_of_a_url_neither_user_nor_password_nor_values_of_the_query_are_shown(text, shown):
    assert redacted(text) == shown
    assert redacted(shown) == shown


def test_control_characters_and_halves_of_characters_are_escaped_and_lines_kept():
    assert printable("a\x1b]0;x\x07\r\tb\nc\ud83d\x9b\u202e é 漢字 👩\u200d🔬") == (
        "a\\x1b]0;x\\x07\\r\\tb\nc\\ud83d\\x9b\\u202e é 漢字 👩\u200d🔬"
    )
    assert message("a\nb") == "a\\nb"
    assert one_line("a\n\n  b" + "c" * 400, 10) == "a bccccccc"


@pytest.mark.parametrize("kind", [UserError, RunFailed, lambda said: BadRow("a", said)])
def test_no_error_of_ours_has_a_secret_or_a_second_line_in_its_message(kind):
    assert str(kind(f"{SIGNED}\n\x1b")) == f"{SHOWN}\\n\\x1b"


def test_a_configuration_computes_with_secrets_and_keeps_none():
    job = Job(pairs=SIGNED, model="http://a:s3cret@host/m")
    assert job.pairs == SIGNED
    assert job.model_dump()["pairs"] == SIGNED
    assert job.model_dump(mode="json") == {"pairs": SHOWN, "model": "http:/user:***@host/m"}
    assert settings(job, decides)["pairs"] == SHOWN
    assert "s3cret" not in job.model_dump_json()
    assert redacted_all({SIGNED: [SIGNED, 1, None, (SIGNED,)]}) == {SHOWN: [SHOWN, 1, None, [SHOWN]]}


def test_a_place_that_was_kept_without_its_secrets_opens_where_they_were_given_and_nowhere_else():
    place = "memory://alice:s3cret@box/set"
    with pytest.raises(
        UserError, match=r"memory://user:\*\*\*@box/set was kept without its secrets: give the full URL again"
    ):
        open_store("memory://user:***@box/set")
    Job(pairs=place)
    assert open_store("memory://user:***@box/set").location == place
    assert open_store("memory://user:***@box/set/inner").location == f"{place}/inner"
