# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Files to a repository of the Hub in one commit: all of them or none, and errors that say what to do."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from hf_clipbd.schema import TOKEN


Files = dict[str, Path | bytes]
"""Path in the repository -> a file of this machine, or its content."""
TEXTS = (".json", ".jinja", ".md", ".txt", ".yaml")
FOLDERS = ("records", "pictures", "figures", "data")
WEIGHTS = (".safetensors", ".safetensors.index.json", "adapter_config.json", "open_clip_config.json")
LOGIN = "Log in with `hf auth login` and a token that may write there, or check the repository's name."
WHOLE = (
    "The commit is made last and as a whole, so the repository holds all of this push or nothing of it. Push again: "
    "files that have arrived are not sent twice."
)


def publish(files: Files, repo_id: str, repo_type: str, private: bool, token: str | None, message: str) -> str:
    """Make `files` the content of a repository in one commit, and return the commit's address.

    The repository is made if it is not there. What an earlier push left of a model, records, pictures, figures and
    data, and this one does not bring, goes in the same commit; other files stay.

    Large files go ahead of the commit. The client sends them through Xet where `hf_xet` is installed, as it is by
    default, in chunks of which those that have arrived are not sent twice; a server that has no Xet is not found out
    by itself, so for such a one set `HF_HUB_DISABLE_XET=1`, and whole files go over HTTP instead. In either way
    nothing shows in the repository before the commit. (`HfApi.upload_folder` may make several commits of a large
    folder under Xet, so it is not used.)

    Args:
        files: Path in the repository -> file or content.
        repo_id: `owner/name`.
        repo_type: "model" or "dataset".
        private: Whether the repository has to be private.
        token: Hub token; the stored one by default.
        message: Title of the commit.

    Raises:
        ValueError: If `repo_id` has no owner, a file holds a token, or the repository is public and should not be;
            nothing is sent then.
        PermissionError: If the Hub does not know the token or does not let it write there.
        ConnectionError: If the Hub cannot be reached, or answers with an error after the client's own retries.
    """
    check_repo_id(repo_id)
    check_no_token(files, token or get_token())
    api = HfApi(token=token)
    with explained(repo_id, token):
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        info = api.repo_info(repo_id, repo_type=repo_type)
        if private and not info.private:
            raise ValueError(
                f"Expected `{repo_id}` to be private, but it is there already and is public. Make it private, take "
                f"another name, or pass private=False (`--public`) if everybody may have this."
            )
        old = [one.rfilename for one in info.siblings or ()]
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=one) for name, one in files.items()]
        operations += [CommitOperationDelete(path_in_repo=name) for name in outdated(old, files)]
        commit = api.create_commit(
            repo_id, operations, commit_message=message, repo_type=repo_type, parent_commit=info.sha
        )
    return str(commit.commit_url)


def check_repo_id(repo_id: str) -> None:
    """Raise `ValueError` unless `repo_id` has the form `owner/name`.

    Example:
        >>> check_repo_id("model")
        Traceback (most recent call last):
        ...
        ValueError: Expected a repository `owner/name`, but got 'model'.
    """
    if repo_id.count("/") != 1:
        raise ValueError(f"Expected a repository `owner/name`, but got {repo_id!r}.")
    validate_repo_id(repo_id)


def check_no_token(files: Mapping[str, Path | bytes], token: str | None = None) -> None:
    """Raise `ValueError` if a text among `files` holds `token` or what looks like a Hub token."""
    for name, one in files.items():
        if not name.endswith(TEXTS):
            continue
        data = one if isinstance(one, bytes) else one.read_bytes()
        text = data.decode("utf-8", errors="replace")
        if TOKEN.search(text) or (token and token in text):
            raise ValueError(
                f"Expected no Hub token in what goes up, but `{name}` holds one. Take it out, and revoke it on the "
                f"Hub if others have seen the file."
            )


def outdated(old: list[str], files: Mapping[str, Path | bytes]) -> list[str]:
    """Return those of the repository's files that an earlier push left and the new one does not replace.

    Example:
        >>> outdated(["records/a.json", "model-00001-of-00002.safetensors", "mine.md"], {"model.safetensors": b""})
        ['records/a.json', 'model-00001-of-00002.safetensors']
    """
    ours = [name for name in old if PurePosixPath(name).parts[0] in FOLDERS or _is_weights(name)]
    return [name for name in ours if name not in files]


def _is_weights(name: str) -> bool:
    return "/" not in name and (name.endswith(WEIGHTS) or name == "config.json")


def check_login(token: str | None = None) -> None:
    """Check that the Hub knows the token, before hours of work whose result is to go there.

    Raises:
        PermissionError: If there is no token, or the Hub does not know it.
        ConnectionError: If the Hub cannot be reached.
    """
    with explained("your repository", token):
        HfApi(token=token).whoami()


@contextmanager
def explained(repo_id: str, token: str | None = None) -> Iterator[None]:
    """Turn the client's errors into ours, which say what to do; no error that leaves here shows a token.

    Args:
        repo_id: Repository that is written to, for the messages.
        token: Hub token; the stored one by default.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        told = _told(error, repo_id)
        secret = token or get_token()
        if any(_shows(one, secret) for one in (told, *_chain(error))):
            raise _hidden(told, secret) from None  # a server may repeat what it was sent
        if told is error:
            raise
        raise told from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _shows(error: BaseException, token: str | None) -> bool:
    text = str(error)
    return bool(TOKEN.search(text) or (token and token in text))


def _hidden(error: Exception, token: str | None) -> Exception:
    """Return the error with tokens taken out of its words."""
    text = TOKEN.sub("hf_…", str(error).replace(token, "hf_…") if token else str(error))
    ours = (PermissionError, ConnectionError, FileNotFoundError, OSError, ValueError)
    return next((kind for kind in ours if isinstance(error, kind)), RuntimeError)(text)


def _told(error: Exception, repo_id: str) -> Exception:
    """Return our error for who may not and for what did not arrive; other refusals keep their words."""
    if isinstance(error, LocalTokenNotFoundError):
        return PermissionError(f"There is no token for the Hub on this machine. {LOGIN}")
    if isinstance(error, HTTPError):
        return _error(error, repo_id)
    if isinstance(error, RuntimeError):  # so the client reports the upload of one of several large files
        return _error(error.__cause__, repo_id, f"{error} ") if isinstance(error.__cause__, HTTPError) else error
    if isinstance(error, (ConnectionError, TimeoutError)) and not isinstance(error, OfflineModeIsEnabled):
        return ConnectionError(  # the words of hf_xet, which raises Python's own errors
            f"The Hub did not take a large file through Xet ({error}). {WHOLE} Where the server has no Xet, as with "
            f"many mirrors, set HF_HUB_DISABLE_XET=1."
        )
    return error


def _error(error: HTTPError, repo_id: str, where: str = "") -> Exception:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403):
        who = "does not know you" if status == 401 else f"does not let you write to `{repo_id}`"
        return PermissionError(f"The Hub {who} (status {status}). {LOGIN}")
    if status is None:
        return ConnectionError(f"{where}The connection to the Hub broke ({type(error).__name__}: {error}). {WHOLE}")
    if status == 429 or status >= 500:
        why = "asks to wait: too many requests" if status == 429 else "has an error of its own"
        return ConnectionError(f"{where}The Hub {why} (status {status}). {WHOLE}")
    return error
