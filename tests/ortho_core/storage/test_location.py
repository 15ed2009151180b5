from pathlib import Path

import pytest

from ortho_core.storage.location import place_name


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/home/me/sets/my-photos", "my-photos"),
        (Path("/home/me/sets/v1.5"), "v1.5"),
        ("/home/me/sets/digits/pairs.jsonl", "digits/pairs.jsonl"),
        ("s3://bucket/sets/birds/", "birds"),
        ("s3://bucket", "bucket"),
        ("s3://bucket/birds.tar", "bucket/birds.tar"),
        ("https://someone:secret@host/sets/birds?X-Amz-Signature=secret", "birds"),
    ],
)
def test_a_place_is_called_by_its_last_part_and_a_file_with_its_folder(place, name):
    assert place_name(place) == name


def test_a_relative_place_is_called_as_its_folder_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place_name(".") == tmp_path.name
    assert place_name("pairs.jsonl") == f"{tmp_path.name}/pairs.jsonl"
