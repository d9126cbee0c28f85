"""What goes wrong between here and a dataset on the Hub, in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from moectl.errors import DataError, MoectlError, from_os_error


def is_unreachable(error: Exception) -> bool:
    """Whether nobody answered, rather than said no."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500
    # `hf_hub_download` says LocalEntryNotFoundError if it could neither connect nor find the file here.
    nobody = (ConnectionError, TimeoutError, errors.HTTPError, errors.LocalEntryNotFoundError, errors.FileMetadataError)  # type: ignore[attr-defined]
    return isinstance(error, nobody)


@contextlib.contextmanager
def named_errors(label: str) -> Iterator[None]:
    """Turn what `huggingface_hub` raises inside the block into DataError, ResourceError if the system refused; `label` names the file."""
    from huggingface_hub import constants, errors

    try:
        yield
    except MoectlError:
        raise
    except Exception as error:
        # The file system wraps what the Hub says of a repository.
        cause = error.__cause__ if type(error) is FileNotFoundError and error.__cause__ is not None else error
        # Subclasses first: a gated repository is also a `RepositoryNotFoundError`, and most of these are OSErrors.
        if isinstance(cause, errors.GatedRepoError):
            message = f"cannot read `{label}`: the dataset is gated and this account may not read it"
            hint = "accept its terms on its Hub page, then log in with `hf auth login` or set `HF_TOKEN`"
        elif isinstance(cause, errors.RepositoryNotFoundError):
            message = f"cannot read `{label}`: there is no such dataset on the Hub that this account can see"
            hint = "check the spelling; for a private dataset log in with `hf auth login` or set `HF_TOKEN`"
        elif isinstance(cause, errors.RevisionNotFoundError):
            message = f"cannot read `{label}`: the dataset has no such revision"
            hint = "name a branch, a tag or a full commit hash after `@`"
        elif isinstance(cause, ValueError) and type(cause).__module__.startswith("huggingface_hub"):
            message, hint = f"`{label}` is not a legal location on the Hub: {cause}", "write `hf://datasets/org/name/path/to/file`"
        elif is_unreachable(error) and constants.HF_HUB_OFFLINE:
            message = f"`{label}` is not in the Hub cache, and `HF_HUB_OFFLINE` forbids the network"
            hint = "unset `HF_HUB_OFFLINE`, or download it first with `hf download --repo-type dataset`"
        elif is_unreachable(error):
            message = f"`{label}` is not in the Hub cache, and the Hub cannot be reached ({type(error.__cause__ or error).__name__})"
            hint = "check the network and the proxy settings, or pass the path of a downloaded copy"
        elif isinstance(cause, errors.EntryNotFoundError) or type(cause) is FileNotFoundError:
            message = f"`{label}` does not exist in the dataset"
            hint = f"check the spelling, or use a pattern such as `{label.rpartition('/')[0]}/*`"
        elif isinstance(cause, errors.HfHubHTTPError):
            status = cause.response.status_code
            message = f"cannot read `{label}`: the Hub answered with status {status}"
            hint = "log in with `hf auth login` or set `HF_TOKEN`" if status in (401, 403) else "try again later"
        elif isinstance(cause, OSError) and cause.errno is not None:  # the system's; broken compression has no number
            raise from_os_error(cause, f"read `{label}`") from error
        else:
            raise
        raise DataError(message, hint=hint) from error
