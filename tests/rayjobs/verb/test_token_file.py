"""The file with Ray's token is its owner's alone."""

import pytest

from rayjobs.verb.token_file import keep_token_private, token_file


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


def mode_of(file):
    return file.stat().st_mode & 0o777


def test_a_token_for_all_to_read_becomes_its_owners(tmp_path, monkeypatch):
    for file in (tmp_path / ".ray" / "auth_token", tmp_path / "elsewhere"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("t")
        file.chmod(0o644)
        if file.name == "elsewhere":
            monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
        keep_token_private()
        assert (mode_of(file), file.read_text()) == (0o600, "t")


def test_where_a_session_would_make_a_token_a_private_one_is_there_before(tmp_path, monkeypatch):
    keep_token_private(create=True)
    file = tmp_path / ".ray" / "auth_token"
    assert (mode_of(file), len(file.read_text())) == (0o600, 64)
    before = file.read_text()
    keep_token_private(create=True)
    assert file.read_text() == before
    assert [each.name for each in file.parent.iterdir()] == ["auth_token"]


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "t")])
def test_no_token_is_made_where_none_is_asked_for(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    keep_token_private(create=True)
    assert list(tmp_path.iterdir()) == []
    assert (token_file() is None) == (name == "RAY_AUTH_TOKEN")
