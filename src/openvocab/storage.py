"""The cache folder, atomic writing, and fingerprints of content."""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def cache_folder(*parts: str) -> Path:
    """The one folder that everything generated or downloaded lives under; created when missing.

    `OPENVOCAB_CACHE` names it, else the platform's own cache folder is used.
    """
    named = os.environ.get("OPENVOCAB_CACHE")
    if named:
        root = Path(named).expanduser()
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches" / "openvocab"
    elif os.name == "nt":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home())) / "openvocab" / "cache"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openvocab"
    folder = root.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it replaces `path`, on failure nothing is left behind.

    Raises:
        OSError: the disk is full or the folder is not writable; the old content of `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from error
        raise


def write_bytes(path: Path | str, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, content: str) -> None:
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Parsed json; a broken file raises ValueError with its path and line."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid json ({error})") from None


def claim(path: Path, wanted: dict[str, Any], chosen: dict[str, Any] | None = None) -> None:
    """Writes what a folder's work was asked for, so that the same words go on with it and others are refused.

    Args:
        chosen: the part of `wanted` that is not at its default; what the folder's version did not know may be missing
            elsewhere.

    Raises:
        ValueError: the folder's work was asked for with something else; names the first setting that differs.
    """
    wanted, chosen = (json.loads(json.dumps(asked)) for asked in (wanted, wanted if chosen is None else chosen))
    if path.exists() and (difference := _difference(read_json(path), wanted, chosen)):
        raise ValueError(f"{path.parent} holds other work ({difference}); choose another --out or delete it")
    write_json(path, wanted)


def _difference(found: Any, wanted: Any, chosen: Any, path: str = "") -> str:
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return "" if found == wanted else f"{path} was {found}, now {wanted}"
    for name in wanted:
        if name in found or name in chosen:
            place = f"{path}.{name}" if path else name
            if inner := _difference(found.get(name), wanted[name], chosen.get(name, {}), place):
                return inner
    return ""


def fingerprint(*parts: Any) -> str:
    """A short content hash (16 hex digits) of json values, text and bytes, in order."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, ensure_ascii=False).encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()[:16]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
