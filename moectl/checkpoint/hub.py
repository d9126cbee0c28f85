"""Files of a Hub repository, through `huggingface_hub`, its cache and `HF_HUB_OFFLINE`. Knows only file names.

repository = HubRepository("org/name", revision=None)
folder = repository.download(weights=False)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moectl.errors import ModelError, from_os_error

_SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt"]
# Folders hold other layouts of the same weights (`original/`, `metal/`, `onnx/`), `consolidated*` Mistral's own copy.
_NEVER = ["*/*", "consolidated*", "adapter_model*"]


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A model repository.

    Every method raises ModelError if neither the Hub nor the cache gives what is asked, ResourceError if the disk is full.
    """

    name: str
    revision: str | None

    def download(self, *, weights: bool) -> Path:
        """The cached folder of the snapshot, its name being the commit; with `weights` also the safetensors files."""
        import huggingface_hub

        patterns = [*_SMALL_FILES, "*.safetensors"] if weights else _SMALL_FILES
        with _named_errors(self):
            return Path(
                huggingface_hub.snapshot_download(self.name, revision=self.revision, allow_patterns=patterns, ignore_patterns=_NEVER)
            )

    def file_names(self) -> set[str]:
        """The names of all files at the top of the repository, also those that are never downloaded. Needs the network."""
        import huggingface_hub

        with _named_errors(self):
            names = huggingface_hub.list_repo_files(self.name, revision=self.revision)
        return {name for name in names if "/" not in name}


@contextlib.contextmanager
def _named_errors(repository: HubRepository) -> Iterator[None]:
    # Subclasses first: a gated repository is also a `RepositoryNotFoundError`, and most of these are OSErrors.
    from huggingface_hub import constants, errors

    name, revision = repository.name, repository.revision or "main"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"the Hub repository `{name}` is gated and this account may not read it",
            hint="accept its terms on its Hub page, then log in with `hf auth login` or set `HF_TOKEN`",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"`{name}` is neither a path here nor a model repository on the Hub that this account can see",
            hint="check the spelling; for a private repository log in with `hf auth login` or set `HF_TOKEN`",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(
            f"the Hub repository `{name}` has no revision `{revision}`", hint="name a branch, a tag or a full commit hash after `@`"
        ) from error
    except errors.DisabledRepoError as error:
        raise ModelError(f"the Hub repository `{name}` was disabled by its author or the Hub", hint="use another copy") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            raise ModelError(
                f"`{name}` at revision `{revision}` is not a path here and not complete in the Hub cache, "
                "and `HF_HUB_OFFLINE` forbids the network",
                hint="unset `HF_HUB_OFFLINE`, or download it first with `hf download`",
            ) from error
        raise _unreachable(name, revision, error) from error
    except errors.HFValidationError as error:
        raise ModelError(f"`{name}` is neither a path here nor a legal Hub id `org/name`", hint="check the spelling") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise ModelError(f"the Hub answered `{name}` at revision `{revision}` with status {status}", hint="try again later") from error
    except (ConnectionError, TimeoutError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        raise _unreachable(name, revision, error) from error
    except OSError as error:
        raise from_os_error(error, f"download `{name}` into the Hub cache `{constants.HF_HUB_CACHE}`") from error


def _unreachable(name: str, revision: str, error: Exception) -> ModelError:
    cause = type(error.__cause__ or error).__name__
    return ModelError(
        f"`{name}` at revision `{revision}` is not a path here and not complete in the Hub cache, and the Hub cannot be reached ({cause})",
        hint="check the path, the network and the proxy settings, or pass the folder of a downloaded copy",
    )
