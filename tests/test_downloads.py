import dataclasses
import errno
import hashlib
import io
import logging
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlsr_env.downloads import DownloadableImages, data_folder
from rlsr_env.fetch import DownloadError, Patience, RemoteFile
from rlsr_env.images import decode_images, image_set
from rlsr_env.sources import SOURCES, Source


def png(value: int) -> bytes:
    """A picture of noise: its bytes are so many that a half of them is worth resuming."""
    content = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    pixels[0, 0] = value
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


PICTURES = {f"{name}.png": png(value) for value, name in enumerate(["one", "two", "three"], start=1)}
ARCHIVE = zipped({f"Pictures/{name}": data for name, data in PICTURES.items()})
HALF = len(ARCHIVE) // 2


class Server(ThreadingHTTPServer):
    """Serves `content` on loopback, and misbehaves once for each entry of `faults`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = dict(PICTURES, **{"set.zip": ARCHIVE})
        self.faults: list[str] = []
        self.headers = {"ETag": '"v1"'}
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.busy, self.closing = threading.Event(), threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data"

    @property
    def ranges(self) -> list[str | None]:
        return [requested for _, requested, _ in self.requests]

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: the client that hangs up is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.removeprefix("/data/")
        requested, condition = self.headers["Range"], self.headers["If-Range"]
        self.server.requests.append((name, requested, condition))
        self.server.busy.set()
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault == "silent":
            self.server.closing.wait(10)
            return
        if fault.isdigit() or name not in self.server.content:
            self.send_error(int(fault or 404))
            return
        body, start = self.server.content[name], 0
        current = condition in (self.server.headers.get("ETag"), self.server.headers.get("Last-Modified"))
        if requested and current and fault != "no-ranges":
            start = int(requested.removeprefix("bytes=").removesuffix("-")) + (fault == "other-range")
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        for header, value in self.server.headers.items():
            self.send_header(header, value)
        if fault != "no-length":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if fault == "corrupt":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]
        end = HALF if fault in ("truncate", "stall", "no-length") else len(body)
        self.wfile.write(body[start:end])
        if fault == "stall":
            self.server.closing.wait(10)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.closing.set()
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for downloads; no proxy comes between the test and its server."""
    monkeypatch.setenv("RLSR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "data"


def remote(name: str, content: bytes) -> RemoteFile:
    return RemoteFile(name, len(content), hashlib.sha256(content).hexdigest())


def source(*files: RemoteFile, pictures: int = 3) -> Source:
    return Source("http://server.invalid/", files, pictures, "free", "three pictures of noise")


LOOSE = source(*(remote(name, content) for name, content in PICTURES.items()))
ZIP = source(remote("set.zip", ARCHIVE))
URIS = ["test:all/one", "test:all/three", "test:all/two"]


@pytest.fixture
def make_set(server: Server) -> Callable[..., DownloadableImages]:
    def make(source: Source = ZIP, attempts: int = 3, timeout: float = 5.0, base: str = "") -> DownloadableImages:
        patience = Patience(timeout, attempts, backoff=0.001)
        return DownloadableImages("test:all", source, base=base or server.address, patience=patience)

    return make


MakeSet = Callable[..., DownloadableImages]


def left_behind(data: Path) -> list[str]:
    """What is on the disk beside the pictures; the lock's file may stay."""
    found = (path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.endswith(".lock") and not name.startswith("test/all/"))


@pytest.mark.parametrize("source", [LOOSE, ZIP], ids=["loose", "zip"])
def test_set_is_downloaded_once_when_first_used(server: Server, make_set: MakeSet, data: Path, source: Source) -> None:
    images = make_set(source)
    assert server.requests == [] and not images.installed and not data.exists()
    assert images.uris() == URIS and images.installed
    assert sorted(server.requests) == sorted((file.name, None, None) for file in source.files)
    assert left_behind(data) == []
    again = make_set(source)
    again.install()
    assert again.uris() == URIS and len(server.requests) == len(source.files)


def test_decoding_downloads_and_gives_the_pixels(make_set: MakeSet) -> None:
    decoded = decode_images(make_set())
    assert decoded.uris == tuple(URIS)
    assert [picture[0, 0, 0] for picture in decoded.images] == [1, 3, 2]


def test_loading_a_picture_downloads_the_set(make_set: MakeSet) -> None:
    assert make_set().load("test:all/two")[0, 0].tolist() == [2, 2, 2]


def test_uri_of_another_set_is_refused(make_set: MakeSet) -> None:
    with pytest.raises(ValueError, match="'kodak/kodim01' is not in the image set 'test:all'"):
        make_set().load("kodak/kodim01")


def test_progress_bar_stays_out_of_standard_output(make_set: MakeSet, capsys: pytest.CaptureFixture[str]) -> None:
    make_set().install(progress=True)
    assert capsys.readouterr().out == ""


def test_progress_bar_can_be_left_out(
    make_set: MakeSet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    make_set().install(progress=False)
    assert capsys.readouterr() == ("", "")


def test_progress_bar_is_shown_on_standard_error(
    make_set: MakeSet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    make_set().install()
    assert "test:all" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["truncate", "stall"])
def test_interrupted_download_is_resumed(server: Server, make_set: MakeSet, fault: str) -> None:
    server.faults = [fault]
    make_set(timeout=0.3).install()
    assert server.requests == [("set.zip", None, None), ("set.zip", f"bytes={HALF}-", '"v1"')]


def test_interrupted_download_is_resumed_by_the_next_process(server: Server, make_set: MakeSet, data: Path) -> None:
    server.faults = ["truncate"]
    images = make_set(attempts=1)
    with pytest.raises(DownloadError, match=rf"ended after {HALF} of {len(ARCHIVE)} bytes \(1 attempts\).* is kept"):
        images.install()
    assert not images.installed and not images.folder.exists()
    assert (data / "test" / "all.part" / "set.zip.part").read_bytes() == ARCHIVE[:HALF]
    make_set(attempts=1).install()
    assert server.ranges == [None, f"bytes={HALF}-"]
    assert left_behind(data) == []


def test_loose_pictures_that_are_there_are_not_downloaded_again(server: Server, make_set: MakeSet) -> None:
    server.faults = ["", "404"]
    with pytest.raises(DownloadError, match=r"two\.png"):
        make_set(LOOSE).install()
    assert make_set(LOOSE).uris() == URIS
    assert [name for name, _, _ in server.requests] == ["one.png", "two.png", "two.png", "three.png"]


def test_complete_part_is_not_asked_for_again(server: Server, make_set: MakeSet, data: Path) -> None:
    part = data / "test" / "all.part"
    part.mkdir(parents=True)
    (part / "set.zip.part").write_bytes(ARCHIVE)
    (part / "set.zip.part.tag").write_text('"v1"')
    assert make_set().uris() == URIS and server.requests == []


def test_server_without_ranges_sends_all_again(server: Server, make_set: MakeSet) -> None:
    server.faults = ["truncate", "no-ranges"]
    make_set().install()
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_file_that_changed_meanwhile_is_downloaded_from_its_start(server: Server, make_set: MakeSet) -> None:
    server.faults = ["truncate"]
    server.content["set.zip"] = b"\0" * len(ARCHIVE)
    with pytest.raises(DownloadError):
        make_set(attempts=1).install()
    server.content["set.zip"], server.headers = ARCHIVE, {"ETag": '"v2"'}
    assert make_set().uris() == URIS
    assert server.requests[1:] == [("set.zip", f"bytes={HALF}-", '"v1"')]


def test_date_of_the_file_replaces_a_weak_tag(server: Server, make_set: MakeSet) -> None:
    date = "Tue, 14 Feb 2017 14:27:11 GMT"
    server.headers = {"ETag": 'W/"v1"', "Last-Modified": date}
    server.faults = ["truncate"]
    make_set().install()
    assert server.requests[1:] == [("set.zip", f"bytes={HALF}-", date)]


def test_nothing_is_resumed_without_a_tag(server: Server, make_set: MakeSet) -> None:
    server.headers = {}
    server.faults = ["truncate"]
    make_set().install()
    assert server.ranges == [None, None]


def test_file_that_became_shorter_is_downloaded_from_its_start(server: Server, make_set: MakeSet, data: Path) -> None:
    part = data / "test" / "all.part"
    part.mkdir(parents=True)
    (part / "set.zip.part").write_bytes(ARCHIVE + b"more")
    (part / "set.zip.part.tag").write_text('"v1"')
    assert make_set().uris() == URIS
    assert server.ranges == [f"bytes={len(ARCHIVE) + 4}-", None]


def test_other_range_than_asked_for_is_not_appended(server: Server, make_set: MakeSet) -> None:
    server.faults = ["truncate", "other-range"]
    make_set().install()
    assert server.ranges == [None, f"bytes={HALF}-", None]


def test_body_without_a_length_is_measured_by_the_known_size(server: Server, make_set: MakeSet) -> None:
    server.faults = ["no-length"]
    make_set().install()
    assert server.ranges == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize("source", [LOOSE, ZIP], ids=["loose", "zip"])
def test_wrong_checksum_is_refused_and_nothing_of_it_is_kept(
    server: Server, make_set: MakeSet, data: Path, source: Source
) -> None:
    server.faults = ["corrupt"]
    images, file = make_set(source), source.files[0]
    with pytest.raises(
        ValueError, match=rf"{file.name} from http://127.* expected SHA-256 {file.sha256}, got [0-9a-f]+;"
    ):
        images.install()
    assert not images.installed and left_behind(data) == []
    assert len(server.requests) == 1
    assert images.uris() == URIS and server.ranges[1] is None


def test_wrong_size_is_refused(server: Server, make_set: MakeSet, data: Path) -> None:
    server.content["set.zip"] = ARCHIVE + b"more"
    with pytest.raises(ValueError, match=rf"expected size {len(ARCHIVE)}, got {len(ARCHIVE) + 4}"):
        make_set().install()
    assert left_behind(data) == []


def test_file_put_beside_by_hand_is_verified(server: Server, make_set: MakeSet, data: Path) -> None:
    part = data / "test" / "all.part"
    part.mkdir(parents=True)
    (part / "set.zip").write_bytes(ARCHIVE[:-1] + b"?")
    with pytest.raises(ValueError, match="expected SHA-256"):
        make_set().install()
    (part / "set.zip").write_bytes(ARCHIVE)
    assert make_set().uris() == URIS and server.requests == []


@pytest.mark.parametrize("code", ["500", "503", "429"])
def test_server_error_that_passes_is_outlasted(server: Server, make_set: MakeSet, code: str) -> None:
    server.faults = [code, code]
    make_set(attempts=3).install()
    assert len(server.requests) == 3


def test_server_error_that_stays_ends_after_the_attempts(server: Server, make_set: MakeSet) -> None:
    server.faults = ["500"] * 9
    with pytest.raises(DownloadError, match=r"set\.zip: the server answered 500 Internal Server Error \(3 attempts\)"):
        make_set(attempts=3).install()
    assert len(server.requests) == 3


def test_missing_file_is_reported_at_once_with_what_to_do(server: Server, make_set: MakeSet) -> None:
    server.content.clear()
    images = make_set()
    with pytest.raises(DownloadError) as raised:
        images.uris()
    for part in (
        f"{server.address}/set.zip",
        "404 Not Found",
        f"3 pictures of test:all into {images.folder}",
        "folder:",
    ):
        assert part in str(raised.value)
    assert len(server.requests) == 1 and not images.installed


def test_refused_connection(make_set: MakeSet) -> None:
    with Server() as closed:
        address = closed.address
    with pytest.raises(DownloadError, match=rf"cannot download {address}/set\.zip: Connection refused \(2 attempts\)"):
        make_set(base=address, attempts=2).install()


def test_server_that_says_nothing(server: Server, make_set: MakeSet) -> None:
    server.faults = ["silent"] * 2
    with pytest.raises(DownloadError, match=r"no answer within 0\.2 s \(2 attempts\)"):
        make_set(attempts=2, timeout=0.2).install()
    assert len(server.requests) == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is full")
def test_full_disk(make_set: MakeSet, data: Path) -> None:
    part = data / "test" / "all.part"
    part.mkdir(parents=True)
    (part / "set.zip.part").symlink_to("/dev/full")
    with pytest.raises(
        OSError, match=r"cannot keep .* of test:all in .*No space left on device; .*RLSR_DATA"
    ) as raised:
        make_set().install()
    assert raised.value.errno == errno.ENOSPC and not isinstance(raised.value, DownloadError)


def test_folder_that_cannot_be_made(make_set: MakeSet, data: Path) -> None:
    data.write_text("a file where the folder should be")
    with pytest.raises(NotADirectoryError, match=r"cannot keep the pictures of test:all in .*RLSR_DATA"):
        make_set().install()


def test_only_pictures_are_unpacked(server: Server, make_set: MakeSet, data: Path) -> None:
    others = {"readme.txt": b"words", "__MACOSX/valid/._one.png": b"\0", "valid/.hidden.png": b"\0", "folder.png/": b""}
    server.content["set.zip"] = archive = zipped({**others, **{f"valid/{n}": d for n, d in PICTURES.items()}})
    assert make_set(source(remote("set.zip", archive))).uris() == URIS
    assert sorted(path.name for path in (data / "test" / "all").iterdir()) == ["one.png", "three.png", "two.png"]


def test_no_member_of_an_archive_is_written_outside_of_the_folder(
    server: Server, make_set: MakeSet, data: Path
) -> None:
    names = ["../../../one.png", "/two.png", "..\\..\\three.png"]
    server.content["set.zip"] = archive = zipped(dict(zip(names, PICTURES.values(), strict=True)))
    assert make_set(source(remote("set.zip", archive))).uris() == URIS
    assert [path for path in data.parent.rglob("*.png") if path.parent != data / "test" / "all"] == []


def test_process_that_died_while_unpacking_leaves_nothing_in_the_set(
    server: Server, make_set: MakeSet, data: Path
) -> None:
    half_unpacked = data / "test" / "all.part" / "pictures"
    half_unpacked.mkdir(parents=True)
    (half_unpacked / "torn.png").write_bytes(b"half a picture")
    images = make_set()
    assert not images.installed
    assert images.uris() == URIS and left_behind(data) == []


def test_archive_of_unknown_checksum_is_noted_once_and_its_own_ones_are_checked(
    server: Server, make_set: MakeSet, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = source(RemoteFile("set.zip"))
    server.faults = ["corrupt"]
    with pytest.raises(ValueError, match=r"set\.zip is no whole zip archive and was deleted: .*CRC"):
        make_set(unknown).install()
    assert not make_set(unknown).installed
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert make_set(unknown).uris() == URIS
        assert make_set(unknown).uris() == URIS
    assert [record.getMessage() for record in caplog.records] == [
        f"no checksum of {server.address}/set.zip is known; only a zip archive's own CRCs are checked"
    ]
    assert server.ranges == [None, None]


def test_file_that_is_no_archive(server: Server, make_set: MakeSet) -> None:
    server.content["set.zip"] = b"<html>we have moved</html>"
    with pytest.raises(ValueError, match=r"set\.zip is no whole zip archive"):
        make_set(source(RemoteFile("set.zip"))).install()


def test_archive_with_another_number_of_pictures_is_not_installed(make_set: MakeSet) -> None:
    images = make_set(dataclasses.replace(ZIP, pictures=4))
    with pytest.raises(ValueError, match="hold 3 pictures, but 4 were expected"):
        images.install()
    assert not images.installed and not images.folder.exists()


@pytest.mark.parametrize("subfolder", [".", "Pictures"])
def test_pictures_put_there_by_hand_are_used(server: Server, make_set: MakeSet, data: Path, subfolder: str) -> None:
    folder = data / "test" / "all" / subfolder
    folder.mkdir(parents=True)
    for name, content in PICTURES.items():
        (folder / name).write_bytes(content)
    assert make_set().installed
    assert make_set().uris() == URIS and server.requests == []


def test_incomplete_folder_is_reported_and_left_as_it_is(server: Server, make_set: MakeSet, data: Path) -> None:
    (data / "test" / "all").mkdir(parents=True)
    (data / "test" / "all" / "one.png").write_bytes(PICTURES["one.png"])
    with pytest.raises(
        ValueError, match=r"all holds 1 pictures, but test:all has 3; complete the folder, or remove it"
    ):
        make_set().install()
    assert server.requests == [] and [path.name for path in (data / "test" / "all").iterdir()] == ["one.png"]


def test_two_processes_at_once_download_once(
    server: Server, make_set: MakeSet, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults = ["stall"]  # the first is held up, so that the second finds it at work
    program = (
        "import sys; from rlsr_env.downloads import DownloadableImages, Patience;"
        "from rlsr_env.fetch import RemoteFile; from rlsr_env.sources import Source;"
        "source = Source(sys.argv[1], (RemoteFile('set.zip'),), 3, '', '');"
        "print(*DownloadableImages('test:all', source, patience=Patience(timeout=0.5)).uris())"
    )
    first = subprocess.Popen([sys.executable, "-c", program, server.address], stdout=subprocess.PIPE, text=True)
    assert server.busy.wait(60)
    assert make_set().uris() == URIS
    assert first.communicate()[0].split() == URIS
    assert server.ranges == [None, f"bytes={HALF}-"]
    assert [record.getMessage() for record in caplog.records] == [
        "another process is downloading test:all; waiting for it"
    ]


def test_environment_variable_chooses_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSR_DATA", str(tmp_path / "elsewhere"))
    assert DownloadableImages("div2k:valid", ZIP).folder == tmp_path / "elsewhere" / "div2k" / "valid"


@pytest.mark.skipif(sys.platform != "linux", reason="the convention of Linux")
@pytest.mark.parametrize("unset", [True, False])
def test_cache_folder_follows_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unset: bool) -> None:
    if unset:
        monkeypatch.delenv("RLSR_DATA")
    else:
        monkeypatch.setenv("RLSR_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "rlsr" / "images"


def test_version_follows_the_files_and_not_the_server(make_set: MakeSet) -> None:
    assert make_set(ZIP).version == make_set(ZIP, base="http://mirror.invalid").version
    assert make_set(ZIP).version != make_set(LOOSE).version


@pytest.mark.parametrize("name", SOURCES)
def test_known_set_is_described_without_touching_network_or_disk(name: str, data: Path) -> None:
    images = image_set(name)
    assert isinstance(images, DownloadableImages)
    assert images.name == name and not images.installed and not data.exists()
    assert images.version and images.licence and images.description
    assert images.base.startswith("https://") and images.base.endswith("/")
    for file in images.files:
        assert file.size and file.size > 100_000
        assert file.sha256 is not None and len(bytes.fromhex(file.sha256)) == 32
    assert len({file.sha256 for file in images.files}) == len(images.files)


@pytest.mark.parametrize("name", ["div2k", "clic2020-professional", "clic2020-mobile"])
def test_set_without_its_split_is_the_training_split(name: str) -> None:
    assert image_set(name).name == f"{name}:train"


def test_kodak_in_the_data_folder_is_used(data: Path) -> None:
    (data / "kodak").mkdir(parents=True)
    for number in range(1, 25):
        (data / "kodak" / f"kodim{number:02d}.png").write_bytes(PICTURES["one.png"])
    images = image_set("kodak")
    assert images.uris()[:2] == ["kodak/kodim01", "kodak/kodim02"] and len(images.uris()) == 24
    assert [file.name for file in SOURCES["kodak"].files] == [f"kodim{number:02d}.png" for number in range(1, 25)]


def test_set_can_be_pickled(make_set: MakeSet) -> None:
    copy = pickle.loads(pickle.dumps(make_set()))
    assert copy.uris() == URIS


@pytest.mark.parametrize("setting", [{"timeout": 0.0}, {"attempts": 0}, {"backoff": -1.0}])
def test_impatience_is_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected a timeout above 0, at least 1 attempt"):
        Patience(**setting)  # type: ignore[arg-type]


def test_naming_a_set_imports_nothing_that_downloads() -> None:
    program = (
        "import sys; from rlsr_env.images import image_set; image_set('sample');"
        "print([name for name in ('rlsr_env.downloads', 'rich', 'platformdirs') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
