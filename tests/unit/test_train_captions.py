"""Captions of pictures, as three kinds of users keep them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from gencli.errors import GencliError
from gencli.train.captions import find_captions
from gencli.train.pictures import Caption


def files(folder: Path, **contents: str) -> Path:
    for name, content in contents.items():
        file = folder / name.replace("__", "/").replace("_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    return folder


def zipped(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder).as_posix())
    return file


def both(folder: Path, tmp_path: Path) -> list[Path]:
    return [folder, zipped(folder, tmp_path / "pictures.zip")]


def test_json_lines_in_either_words(tmp_path: Path) -> None:
    rows = [
        {"file": "b.png", "label": "red circle", "tags": ["round", "red"], "group": "shapes"},
        {"file_name": "a.png", "text": "a blue square", "tags": None},
    ]
    (tmp_path / "captions.jsonl").write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    folder = files(tmp_path / "pictures", a_png="", b_png="", c_png="")
    wanted = [("b.png", Caption("red circle", ("round", "red"), "shapes")), ("a.png", Caption("a blue square", (), ""))]
    for source in both(folder, tmp_path):
        assert find_captions(source, [tmp_path / "captions.jsonl"]) == wanted


def test_a_second_file_adds_names_and_tags(tmp_path: Path) -> None:
    folder = files(tmp_path / "pictures", a_png="", b_png="")
    files(
        tmp_path,
        captions_jsonl='{"file": "a.png", "label": "hot beverage", "tags": ["drink"]}\n{"file": "b.png", "label": "b"}',
        words_jsonl='{"file": "a.png", "label": "coffee", "tags": ["tea"]}\n{"file": "a.png", "label": "cup"}',
        wrong_jsonl='{"file": "c.png", "label": "coffee"}',
    )
    first, words, wrong = (tmp_path / f"{name}.jsonl" for name in ("captions", "words", "wrong"))
    assert find_captions(folder, [first, words]) == [
        ("a.png", Caption("hot beverage", ("drink", "tea"), "", ("coffee", "cup"))),
        ("b.png", Caption("b", (), "")),
    ]
    with pytest.raises(GencliError, match=r"tells of c\.png, which has no caption"):
        find_captions(folder, [first, wrong])


def test_metadata_among_the_pictures(tmp_path: Path) -> None:
    """As in `datasets`: names in it are seen from its own folder."""
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "deep/b.png", "text": "two"}]
    lines = "\n".join(map(json.dumps, rows))
    folder = files(tmp_path / "pictures", train__metadata_jsonl=lines, train__a_png="", train__deep__b_png="")
    for source in both(folder, tmp_path):
        found = find_captions(source, [])
        assert [(name, caption.label) for name, caption in found] == [
            ("train/a.png", "one"),
            ("train/deep/b.png", "two"),
        ]


def test_a_text_beside_each_picture(tmp_path: Path) -> None:
    folder = files(tmp_path / "pictures", b_JPG="", b_txt="\ufeffa red\n  circle\n", in__a_png="", in__a_txt="")
    for source in both(folder, tmp_path):
        assert find_captions(source, []) == [
            ("b.JPG", Caption("a red circle", (), "")),
            ("in/a.png", Caption("", (), "")),
        ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"label": "b"}', "line 2: no JSON object with keys"),
        ('{"file": "a.png"}', "line 2: no JSON object with keys"),
        ('{"file": "a.png", "label": 5}', "line 2: 'label' is not a text in quotes"),
        ('{"file_name": null, "text": "x"}', "line 2: 'file_name' is not a text in quotes"),
        ('{"file": "a.png", "label": "x", "tags": "ab"}', "line 2: 'tags' is not a list of texts"),
        ('{"file": "a.png", "label": "x", "tags": 5}', "line 2: 'tags' is not a list of texts"),
        ("[]", "line 2: no JSON object with keys"),
        ("{", "line 2 is not valid JSON"),
        ('{"file": "../x.png", "label": "x"}', r"has no \.\./x\.png"),
        ('{"file": "z.png", "label": "x"}\n{"file": "y.png", "label": "x"}', r"has no z\.png and 1 more"),
    ],
)
def test_lines_that_are_no_captions(tmp_path: Path, line: str, says: str) -> None:
    folder = files(tmp_path / "pictures", a_png="")
    (tmp_path / "captions.jsonl").write_text('{"file": "a.png", "label": "a"}\n' + line, encoding="utf-8")
    with pytest.raises(GencliError, match=says):
        find_captions(folder, [tmp_path / "captions.jsonl"])


def test_pictures_that_a_file_leaves_out_are_told(tmp_path: Path) -> None:
    folder, told = files(tmp_path / "pictures", a_png="", b_png="", c_md=""), []
    (tmp_path / "captions.jsonl").write_text('{"file": "a.png", "label": "a"}\n')
    find_captions(folder, [tmp_path / "captions.jsonl"], told.append)
    assert told == ["1 of 2 images has a caption: the others are left out"]
    (tmp_path / "captions.jsonl").write_text('{"file": "a.png", "label": "a"}\n{"file": "b.png", "label": "b"}\n')
    find_captions(folder, [tmp_path / "captions.jsonl"], told.append)
    assert len(told) == 1, "all have one"


def test_pictures_without_captions(tmp_path: Path) -> None:
    with pytest.raises(GencliError, match=r"no caption for a\.png and 1 more") as caught:
        find_captions(files(tmp_path / "pictures", a_png="", b_png="", c_png="", c_txt="c"), [])
    assert "metadata.jsonl" in str(caught.value.hint)
    with pytest.raises(GencliError, match="holds no captions"):
        find_captions(files(tmp_path / "none", a_md=""), [])
    (tmp_path / "no.zip").write_bytes(b"PK")
    with pytest.raises(GencliError, match="is not a folder and no zip"):
        find_captions(tmp_path / "no.zip", [])
    (tmp_path / "latin.jsonl").write_bytes('{"file": "é"}'.encode("latin-1"))
    with pytest.raises(GencliError, match="is not UTF-8"):
        find_captions(tmp_path / "pictures", [tmp_path / "latin.jsonl"])
