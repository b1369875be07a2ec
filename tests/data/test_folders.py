"""The walk over folders of samples: which names count, each file once, in one order, and what is said of the rest."""

import os
from pathlib import Path

import pytest
from test_image_folder import BOTH, folder, write_images

from ddp_agent.data.readers.folders import Walk, contents, is_hidden, shown
from ddp_agent.errors import DataError

PICTURES = frozenset({".png", ".jpg"})


def files(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode(errors="replace"))
    return root


def walked(root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The samples of each class, by their paths below `root`, and the remarks."""
    walk = Walk(PICTURES)
    found = {
        name: [str(sample.path.relative_to(root)) for sample in walk.samples(place)]
        for name, place in walk.classes(root).items()
    }
    return found, list(walk.remarks())


@pytest.mark.parametrize(
    "name", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir", "__pycache__", "$RECYCLE.BIN", ".AppleDouble"]
)
def test_a_hidden_folder_is_no_class_and_holds_no_samples(tmp_path: Path, name: str) -> None:
    files(tmp_path, "ant/1.png", f"ant/{name}/1-checkpoint.png", f"{name}/2.png")
    assert walked(tmp_path) == ({"ant": ["ant/1.png"]}, [])


@pytest.mark.parametrize("name", ["._1.png", ".hidden.jpg", "Thumbs.db", ".DS_Store", "desktop.ini"])
def test_a_hidden_file_is_no_sample(tmp_path: Path, name: str) -> None:
    files(tmp_path, "ant/1.png", f"ant/{name}")
    assert walked(tmp_path) == ({"ant": ["ant/1.png"]}, []) and is_hidden(name) and not is_hidden("1.png")


def test_order_and_case_are_those_of_the_names(tmp_path: Path) -> None:
    names = ["b/2.PNG", "b/10.jpg", "b/x/1.Jpg", "B/é.png", "a/1.png"]
    found = [walked(files(tmp_path / str(turn), *names[::turn])) for turn in (1, -1)]
    assert found[0] == found[1]
    assert found[0][0] == {"B": ["B/é.png"], "a": ["a/1.png"], "b": ["b/10.jpg", "b/2.PNG", "b/x/1.Jpg"]}


def test_what_is_passed_over_is_counted_and_said(tmp_path: Path) -> None:
    files(tmp_path, "ant/1.png", "ant/2.gif", "ant/3.GIF", "ant/README", "loose.png", "labels.csv")
    (tmp_path / "ant" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "ant" / "pipe.png")
    (tmp_path / "ant" / "zero.png").symlink_to("/dev/zero")
    found, (remark,) = walked(tmp_path)
    assert found == {"ant": ["ant/1.png"]}
    for part in (
        "2 .gif",
        "1 without an ext",
        "1 links to nothing",
        "2 no regular",
        "1 outside the class",
        ".jpg .png",
    ):
        assert part in remark, part


def test_a_file_that_is_reached_twice_is_one_sample(tmp_path: Path) -> None:
    files(tmp_path, "ant/1.png", "ant/deep/2.png", "elsewhere/3.png", "bee/4.png")
    (tmp_path / "ant" / "copy.png").symlink_to("1.png")
    os.link(tmp_path / "ant" / "1.png", tmp_path / "ant" / "hard.png")
    (tmp_path / "ant" / "again").symlink_to("deep")
    (tmp_path / "ant" / "deep" / "up").symlink_to("..")  # a loop
    (tmp_path / "ant" / "self.png").symlink_to("self.png")
    found, remarks = walked(tmp_path)
    assert len(found["ant"]) == 2 and found["bee"] == ["bee/4.png"]
    assert any("2 links to files that are samples already" in remark for remark in remarks)


def test_links_to_other_disks_are_followed(tmp_path: Path) -> None:
    files(tmp_path / "disk", "ants/1.png", "2.png")
    files(tmp_path / "data", "bee/3.png")
    (tmp_path / "data" / "ant").symlink_to(tmp_path / "disk" / "ants")
    (tmp_path / "data" / "bee" / "2.png").symlink_to(tmp_path / "disk" / "2.png")
    assert walked(tmp_path / "data") == ({"ant": ["ant/1.png"], "bee": ["bee/2.png", "bee/3.png"]}, [])


def test_a_file_has_one_class(tmp_path: Path) -> None:
    files(tmp_path, "ant/1.png", "bee/2.png")
    (tmp_path / "bee" / "1.png").symlink_to("../ant/1.png")
    with pytest.raises(DataError, match=r"bee/1.png: found the same file as .*ant/1.png, expected each file in one"):
        walked(tmp_path)


def test_names_of_any_bytes_are_samples_and_classes(tmp_path: Path) -> None:
    write_images(tmp_path, BOTH)
    for split in (tmp_path / "train", tmp_path / "test"):
        (split / "cat").rename(split / os.fsdecode(b"c\xe9t\n"))
        (split / os.fsdecode(b"c\xe9t\n") / "0.png").rename(split / os.fsdecode(b"c\xe9t\n/\xff\xfe.png"))
    task = folder(tmp_path).load()
    assert task.presentation.class_names == (r"c\xe9t\n", "dog", "eel")
    assert "".join(task.presentation.class_names).encode().isascii() and len(task.data.sha256) == 64
    assert task.data.train_count == 9 and [task.data.train[index][1] for index in range(3)] == [0, 0, 0]


def test_one_text_has_one_form(tmp_path: Path) -> None:
    files(tmp_path, "cafe\u0301/1.png")
    assert list(walked(tmp_path)[0]) == ["caf\u00e9"] == [shown("caf\u00e9")]
    files(tmp_path, "caf\u00e9/1.png")
    with pytest.raises(DataError, match="found two folders called café, expected one per class"):
        walked(tmp_path)


def test_pictures_in_both_splits_and_passed_over_ones_are_remarks_of_the_data(tmp_path: Path) -> None:
    write_images(tmp_path, BOTH)
    (tmp_path / "test" / "cat" / "leak.png").symlink_to(tmp_path / "train" / "cat" / "0.png")
    files(tmp_path, "train/dog/7.heic")
    passed, shared = folder(tmp_path).load().data.remarks
    assert passed.startswith(f"{tmp_path / 'train'}: passed over 1") and "1 .heic" in passed
    assert shared.startswith("1 pictures are links to one file in train/ and in test/")


def test_a_folder_that_cannot_be_read_is_refused_not_passed_over(tmp_path: Path) -> None:
    files(tmp_path, "ant/1.png")
    with pytest.raises(DataError, match=r"nothing: found No such file or directory, expected a folder of samples"):
        Walk(PICTURES).classes(tmp_path / "nothing")
    assert contents(tmp_path) == "only ant/" and contents(tmp_path / "nothing") == "no such folder"
    files(tmp_path, *(f"{number}.txt" for number in range(20)))
    assert contents(tmp_path).endswith("and 13 more")
