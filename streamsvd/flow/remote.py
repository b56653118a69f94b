"""Files behind URLs, through fsspec: ``s3://``, ``https://``, ``gs://``, ``memory://`` and whatever else it knows."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from streamsvd.flow.files import SUFFIXES, File, known, no_data, wanted

WEB = ("http", "https")


def find(url: str, /) -> list[File]:
    """Return the files that a URL, a glob or a folder stands for, sorted by name; a web address (http, https) is one file.

    Credentials and endpoints are what fsspec finds by itself: the usual files and variables (``AWS_ACCESS_KEY_ID``,
    ``AWS_ENDPOINT_URL``, ...), or its configuration. The query of a web address and passwords are kept out of messages and offsets.
    """
    scheme = url.partition("://")[0]
    filesystem, path = _opened(url, scheme)
    if scheme in WEB:
        return [known(File(path, filesystem, path.partition("?")[0].partition("#")[0]))]
    root = _without_secrets(url, scheme)
    filesystem.invalidate_cache()  # what was listed earlier in this process may have changed
    if filesystem.isfile(path):
        return [known(_file(filesystem, path, root))]
    if any(sign in path for sign in "*?["):
        found = [name for name in sorted(filesystem.glob(path)) if wanted(name.rpartition("/")[2])]
        files = [known(_file(filesystem, name, root)) for name in found if filesystem.isfile(name)]
        if not files:
            msg = f"no file matches the pattern {root + path!r}; check the folder and the suffix"
            raise FileNotFoundError(msg)
        return files
    if not filesystem.isdir(path):
        msg = f"{root + path!r} does not exist; check the address, and that this account may read it"
        raise FileNotFoundError(msg)
    files = [_file(filesystem, name, root) for name in sorted(filesystem.find(path)) if _is_data(name, path)]
    if not files:
        raise no_data(root + path)
    return files


def _opened(url: str, scheme: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError as error:
        msg = f'reading {scheme}:// needs the package fsspec: pip install "streamsvd[objects]"'
        raise ImportError(msg) from error
    try:
        return url_to_fs(url)
    except ImportError as error:
        msg = (
            f"reading {scheme}:// needs a package that is not installed ({error}); "
            'for s3:// and https:// that is pip install "streamsvd[objects]"'
        )
        raise ImportError(msg) from error
    except ValueError as error:
        if "Protocol" not in str(error):
            raise
        msg = (
            f"{scheme}:// is no scheme that can be read; expected a local path, or a URL that fsspec knows, such as s3:// or https:// "
            f'(pip install "streamsvd[objects]"): or open it with pyarrow.dataset or polars and pass what that returns'
        )
        raise ValueError(msg) from error


def _without_secrets(url: str, scheme: str) -> str:
    """Return what stands in front of the paths of a filesystem: the scheme, and the host where paths begin after it."""
    host = urlsplit(url).hostname if "@" in urlsplit(url).netloc else None
    return f"{scheme}://" + (host or "")


def _file(filesystem: Any, path: str, root: str) -> File:
    return File(path, filesystem, root + path)


def _is_data(name: str, folder: str) -> bool:
    parts = name.removeprefix(folder).strip("/").split("/")
    return all(map(wanted, parts)) and PurePosixPath(name).suffix.lower() in SUFFIXES
