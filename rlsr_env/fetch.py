"""One file over HTTP: resumed, retried, verified, and under its own name only once it is whole."""

from __future__ import annotations

import hashlib
import http.client
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

_CHUNK_BYTES = 1 << 18
# The answers after which the same request may succeed a little later; every 5xx is one as well.
_PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)

logger = logging.getLogger(__name__)


class DownloadError(OSError):
    """The server cannot be reached, does not have the file, or did not deliver it in the number of attempts."""


class _Interrupted(Exception):
    """A failure that may pass; the text is its reason."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server.

    Attributes:
        path: Where it is below the server's base address; its last component is the file's name.
        size: Bytes, if known.
        sha256: SHA-256 of the content in hexadecimal, if known.
    """

    path: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """Last component of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        timeout: Seconds without an answer or a byte after which an attempt has failed.
        attempts: How often a file is asked for, at most.
        backoff: Seconds before the second attempt; doubled before each further one.
    """

    timeout: float = 30.0
    attempts: int = 4
    backoff: float = 1.0

    def __post_init__(self) -> None:
        """Refuses what is no number of seconds or attempts."""
        if self.timeout <= 0 or self.attempts < 1 or self.backoff < 0:
            raise ValueError(f"expected a timeout above 0, at least 1 attempt and no negative backoff; got {self}")


class _Part:
    """A file that is not whole yet, and beside it the server's tag of the content that it is the beginning of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tag = path.with_name(path.name + ".tag")

    def resumable_bytes(self) -> int:
        """The length of what can be built on: nothing, where no tag tells whether the server's file has changed."""
        return self.path.stat().st_size if self.path.exists() and self._tag.exists() else 0

    def range_headers(self) -> dict[str, str]:
        """Asks for the rest of the same content, or for all of another one (RFC 9110, section 13.1.5)."""
        received = self.resumable_bytes()
        return {"Range": f"bytes={received}-", "If-Range": self._tag.read_text()} if received else {}

    def restart(self, headers: http.client.HTTPMessage) -> None:
        """Empties the part and keeps the tag of what the server sends now."""
        self.path.write_bytes(b"")
        entity_tag = headers["ETag"]
        # A weak entity tag may stand for other bytes of the same meaning, and If-Range refuses it.
        tag = headers["Last-Modified"] if entity_tag is None or entity_tag.startswith("W/") else entity_tag
        if tag is None:
            self._tag.unlink(missing_ok=True)
        else:
            self._tag.write_text(tag)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._tag.unlink(missing_ok=True)

    def complete(self, path: Path) -> None:
        self.path.replace(path)
        self._tag.unlink(missing_ok=True)


def fetch(
    file: RemoteFile,
    base: str,
    folder: Path,
    patience: Patience,
    report: Callable[[int], object] = lambda received: None,
) -> Path:
    """Downloads a file into a folder, unless it is there; it is verified in either case.

    It grows as `NAME.part`; an interrupted download goes on from there, also in another process, if the server
    supports ranges and its file is still the same. It gets its name after the checks.

    Args:
        file: What to download.
        base: Address that `file.path` is appended to.
        folder: Where to put it; it must exist, and no other process may use it meanwhile.
        patience: Timeouts and repetitions.
        report: Called with the number of bytes received so far, for a progress bar.

    Returns:
        Path of the file.

    Raises:
        DownloadError: The server cannot be reached, does not have the file, or failed in each attempt.
        ValueError: The file is not of the size or the SHA-256 expected; it was deleted. Or the address is none.
        OSError: The file cannot be written.
    """
    path = folder / file.name
    part = _Part(folder / f"{file.name}.part")
    address = f"{base.rstrip('/')}/{file.path}"
    if path.exists():
        path.replace(part.path)
    else:
        _receive_patiently(address, part, file.size, patience, report)
    _verify(part, file, address)
    part.complete(path)
    return path


def _receive_patiently(
    address: str, part: _Part, size: int | None, patience: Patience, report: Callable[[int], object]
) -> None:
    """Repeats the attempt after failures that may pass."""
    for attempt in range(patience.attempts):
        try:
            return _receive(address, part, size, patience.timeout, report)
        except _Interrupted as error:
            if attempt == patience.attempts - 1:
                raise DownloadError(f"cannot download {address}: {error} ({patience.attempts} attempts)") from error
            time.sleep(patience.backoff * 2**attempt)


def _receive(address: str, part: _Part, size: int | None, timeout: float, report: Callable[[int], object]) -> None:
    """One attempt to receive what is missing of the part."""
    received = part.resumable_bytes()
    if received and received == size:  # the process ended between the last byte and the check
        return
    try:
        response = _open(address, part.range_headers(), timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.discard()
            raise _Interrupted("the server does not have the rest of the file") from error
        answer = f"the server answered {error.code} {error.reason}"
        if error.code >= 500 or error.code in _PASSING:
            raise _Interrupted(answer) from error
        raise DownloadError(f"cannot download {address}: {answer}") from error
    with response:
        if not received or response.status != HTTPStatus.PARTIAL_CONTENT:
            received = 0
            part.restart(response.headers)
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {received}-"):
            part.discard()
            raise _Interrupted("the server sent another part of the file than it was asked for")
        promised = size if response.length is None else received + response.length
        report(received)
        with part.path.open("ab") as target:
            for chunk in _chunks(response, timeout):
                target.write(chunk)
                received += len(chunk)
                report(received)
    # http.client takes an early end of the connection for the end of the file.
    if promised is not None and received < promised:
        raise _Interrupted(f"the connection ended after {received} of {promised} bytes")


def _open(address: str, headers: dict[str, str], timeout: float) -> http.client.HTTPResponse:
    request = urllib.request.Request(address, headers={"User-Agent": "rlsr", **headers})
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(_reason(error, timeout)) from error


def _chunks(response: http.client.HTTPResponse, timeout: float) -> Iterator[bytes]:
    """The body; what goes wrong in the network is told apart from what goes wrong on the disk.

    `read1` gives what has arrived, so that nothing of it is lost when the connection is.
    """
    left = response.length
    while left is None or left > 0:
        try:
            chunk = response.read1(_CHUNK_BYTES if left is None else min(_CHUNK_BYTES, left))
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(_reason(error, timeout)) from error
        if not chunk:
            return
        left = None if left is None else left - len(chunk)
        yield chunk


def _reason(error: Exception, timeout: float) -> str:
    cause = getattr(error, "reason", error)  # URLError wraps the error of the socket
    if isinstance(cause, TimeoutError):
        return f"no answer within {timeout:g} s"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _verify(part: _Part, file: RemoteFile, address: str) -> None:
    """Raises ValueError, and deletes the part, if it is not the file."""
    checks: list[tuple[str, object, object]] = []
    if file.size is not None:
        checks.append(("size", file.size, part.path.stat().st_size))
    if file.sha256 is None:
        logger.warning("no checksum of %s is known; only a zip archive's own CRCs are checked", address)
    else:
        with part.path.open("rb") as content:
            checks.append(("SHA-256", file.sha256, hashlib.file_digest(content, "sha256").hexdigest()))
    for what, expected, got in checks:
        if got != expected:
            part.discard()
            raise ValueError(
                f"{file.name} from {address} is not the file expected and was deleted: expected {what} {expected}, got "
                f"{got}; download it again, and if that does not help, the server's file has changed"
            )
