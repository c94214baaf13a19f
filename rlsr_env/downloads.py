"""Image sets that are downloaded when they are first used."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

import numpy as np
import platformdirs
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from rlsr_env.fetch import DownloadError, Patience, fetch
from rlsr_env.images import IMAGE_EXTENSIONS, FileImages
from rlsr_env.sources import Source

logger = logging.getLogger(__name__)


def data_folder() -> Path:
    """Where downloaded sets are kept: `$RLSR_DATA`, or else the platform's cache folder, `~/.cache/rlsr/images`."""
    chosen = os.environ.get("RLSR_DATA")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("rlsr", appauthor=False) / "images"


class DownloadableImages(FileImages):
    """A set of pictures that a server has.

    Nothing is downloaded before `install`, `uris` or `load` is called. A URI is `NAME/picture`, as in `kodak/kodim01`.

    Attributes:
        name: What `image_set` is called with to get this set.
        version: Digest of the files' names, sizes and checksums.
        licence: The terms of the pictures, as far as they are known.
        description: One sentence about the content.
        base: Address of the server's folder.
        files: What is downloaded.
        folder: Where the pictures are kept. It appears when they are complete; beside it are, meanwhile, `FOLDER.part`
            and `FOLDER.lock`.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        base: str | None = None,
        folder: str | os.PathLike[str] | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Describes the set; neither the network nor the disk is touched.

        Args:
            name: Name of the set; a split comes after a colon.
            source: What the set consists of.
            base: Address of another server with the same files, such as a mirror; by default `source.base`.
            folder: Where to keep the pictures; by default `data_folder()/NAME`.
            patience: Timeouts and repetitions; by default those of `Patience`.
        """
        super().__init__({})
        self.name = name
        self.base = source.base if base is None else base
        self.files = source.files
        self.folder = data_folder().joinpath(*name.split(":")) if folder is None else Path(folder)
        self.licence = source.licence
        self.description = source.description
        self.version = hashlib.sha256(repr([(f.name, f.size, f.sha256) for f in self.files]).encode()).hexdigest()[:12]
        self._pictures = source.pictures
        self._patience = patience or Patience()

    @property
    def installed(self) -> bool:
        """Whether all pictures are there; those that somebody has put into `folder` by hand count."""
        return len(self._found()) == self._pictures

    def install(self, progress: bool = True) -> None:
        """Downloads the set, unless it is installed. A second process waits for the first.

        Args:
            progress: Whether to show a progress bar on stderr while it lasts.

        Raises:
            DownloadError: The server cannot be reached, does not have a file, or failed in each attempt. What was
                received is kept for the next time.
            ValueError: A file is not the one expected, or `folder` holds another number of pictures.
            OSError: The disk is full, or may not be written to.
        """
        with self._errors_explained():
            if not self.installed:
                with self._lock():
                    if not self.installed:
                        self._download(progress)
        self._files = self._found()

    def uris(self) -> list[str]:
        """Returns the names of all images, sorted; downloads them first, if they are not installed."""
        if not self._files:
            self.install()
        return super().uris()

    def load(self, uri: str) -> np.ndarray:
        """Decodes one image; see `ImageSet.load`. The set is downloaded first, if it is not installed."""
        if not self._files:
            self.install()
        return super().load(uri)

    def _found(self) -> dict[str, Path]:
        """The pictures in the folder; subfolders count, as an archive unpacked by hand has them."""
        pictures = [path for path in self.folder.rglob("*") if _is_picture(path.name) and path.is_file()]
        return {f"{self.name}/{path.stem}": path for path in sorted(pictures, key=lambda path: (path.stem, path))}

    def _download(self, progress: bool) -> None:
        if self.folder.exists():
            raise ValueError(
                f"{self.folder} holds {len(self._found())} pictures, but {self.name} has {self._pictures}; complete "
                f"the folder, or remove it to download the set again"
            )
        part = self.folder.with_name(self.folder.name + ".part")
        part.mkdir(exist_ok=True)
        unpacked = part / "pictures"
        if unpacked.exists():  # of a process that ended while it unpacked
            shutil.rmtree(unpacked)
        sizes = [file.size for file in self.files if file.size is not None]
        with _progress_bar(progress) as bar:
            task = bar.add_task(self.name, total=sum(sizes) if len(sizes) == len(self.files) else None)
            received: list[Path] = []
            for file in self.files:
                before = sum(path.stat().st_size for path in received)

                def report(n_bytes: int, before: int = before) -> None:
                    bar.update(task, completed=before + n_bytes)

                received.append(fetch(file, self.base, part, self._patience, report))
            bar.update(task, description=f"{self.name}: unpacking")
            unpacked.mkdir()
            for path in received:
                if path.suffix == ".zip":
                    _unpack(path, unpacked)
                else:
                    path.replace(unpacked / path.name)
        n_unpacked = sum(1 for _ in unpacked.iterdir())
        if n_unpacked != self._pictures:
            raise ValueError(
                f"the files of {self.name} from {self.base} hold {n_unpacked} pictures, but {self._pictures} were "
                f"expected; they are in {unpacked}, in case they are of use as images='folder:PATH'"
            )
        unpacked.replace(self.folder)
        shutil.rmtree(part)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time; the operating system ends the lock of a process that dies."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder.with_name(self.folder.name + ".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("another process is downloading %s; waiting for it", self.name)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        """Adds what to do about it to errors of the network and of the disk."""
        try:
            yield
        except DownloadError as error:
            raise DownloadError(
                f"{error}. What was received is kept: try again later. Or put the {self._pictures} pictures of "
                f"{self.name} into {self.folder} by hand, or use other pictures with images='folder:PATH'"
            ) from error
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot keep the pictures of {self.name} in {self.folder}: {error.strerror}; free some space or set "
                f"the environment variable RLSR_DATA to another folder",
            ) from error


def _is_picture(name: str) -> bool:
    """Hidden files are none: macOS leaves `__MACOSX/._name.png` in zip archives."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS)


def _progress_bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not shown,
    )


def _unpack(archive: Path, folder: Path) -> None:
    """Writes the pictures of a zip archive into one folder."""
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.infolist():
                # Only the last component of the name is used, so that no member is written outside of the folder. The
                # Windows flavour also takes backslashes and drives off.
                name = PureWindowsPath(member.filename).name
                if _is_picture(name) and not member.is_dir():
                    with members.open(member) as picture, (folder / name).open("wb") as target:
                        shutil.copyfileobj(picture, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        archive.unlink()
        raise ValueError(
            f"{archive.name} is no whole zip archive and was deleted: {error}; download it again"
        ) from error
