import os
from pathlib import Path
from typing import IO

import pytest

from rlsr_env.files import write_whole


def test_writes_the_content(tmp_path: Path) -> None:
    write_whole(tmp_path / "result.bin", lambda file: file.write(b"\x00whole\n"))
    assert (tmp_path / "result.bin").read_bytes() == b"\x00whole\n"
    assert os.listdir(tmp_path) == ["result.bin"]


def test_takes_the_path_as_text(tmp_path: Path) -> None:
    write_whole(str(tmp_path / "result.bin"), lambda file: file.write(b"1"))
    assert (tmp_path / "result.bin").read_bytes() == b"1"


def test_takes_a_name_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_whole("result.bin", lambda file: file.write(b"1"))
    assert (tmp_path / "result.bin").read_bytes() == b"1"


def test_replaces_an_older_and_longer_file(tmp_path: Path) -> None:
    path = tmp_path / "result.bin"
    path.write_bytes(b"older and longer")
    write_whole(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


def test_the_older_file_is_seen_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "result.bin"
    path.write_bytes(b"old")
    seen: list[bytes] = []

    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        file.flush()
        seen.append(path.read_bytes())
        file.write(b" and half")

    write_whole(path, write)
    assert seen == [b"old"]
    assert path.read_bytes() == b"half and half"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_a_failure_leaves_the_older_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "result.bin"
    path.write_bytes(b"old")

    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_whole(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["result.bin"]


def test_ctrl_c_just_after_the_renaming_keeps_the_file_and_stays_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.replace

    def rename_then_interrupt(old: str, new: Path) -> None:
        rename(old, new)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", rename_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "result.bin", lambda file: file.write(b"whole"))
    assert (tmp_path / "result.bin").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["result.bin"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_the_file_is_readable_for_everybody(tmp_path: Path) -> None:
    write_whole(tmp_path / "result.bin", lambda file: file.write(b"1"))
    assert (tmp_path / "result.bin").stat().st_mode & 0o777 == 0o644


def test_a_missing_folder_is_an_error_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "result.bin", lambda file: file.write(b"1"))
    assert os.listdir(tmp_path) == []


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", lambda file: file.write(b"1"))
    assert os.listdir(tmp_path) == ["folder"]
    assert (tmp_path / "folder").is_dir()
