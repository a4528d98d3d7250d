"""Turns what the hub's library raises into one line that says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from control_plane.errors import FaaSMoEError, HubError, HubUnreachable, StorageFull
from control_plane.hub.names import HubName

_MAX_ERROR = 200


@contextmanager
def hub_errors(name: HubName) -> Iterator[None]:
    """Raise a HubError, its HubUnreachable, or StorageFull in place of any error of the block."""
    try:
        yield
    except FaaSMoEError:
        raise
    except OfflineModeIsEnabled as error:
        raise HubUnreachable(f"{name} is not here, and HF_HUB_OFFLINE is set: {_otherwise(name)}") from error
    except GatedRepoError as error:
        raise HubError(
            f"{name.repository} is gated: ask for access on its page, then log in with `hf auth login` or "
            "set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise _not_found(name) from error
    except RevisionNotFoundError as error:
        raise HubError(f"{name.repository} has no revision {name.revision or 'main'!r}") from error
    except EntryNotFoundError as error:
        raise HubError(f"{name}: a file that the hub lists is missing: {_in_one_line(error)}") from error
    except HfHubHTTPError as error:
        raise _refused(name, error) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"the disk is full: {name} cannot be downloaded to {error.filename}") from error
        raise _unreachable(name, error) from error
    except Exception as error:  # The library has the exceptions of several HTTP clients, by its version.
        raise _unreachable(name, error) from error


def _refused(name: HubName, error: HfHubHTTPError) -> HubError:
    status = error.response.status_code
    if status in (401, 404):
        return _not_found(name)
    if status == 403:
        return HubError(
            f"the hub does not give {name.repository} to this token: ask for access, or use another one "
            "(HF_TOKEN)"
        )
    if status == 429 or status >= 500:
        return HubUnreachable(f"the hub answers {status} for {name.repository}: try again later")
    return HubError(f"the hub answers {status} for {name.repository}")


def _not_found(name: HubName) -> HubError:
    return HubError(
        f"there is no file or folder {name}, and no model {name.repository} on the hub; if it is private, "
        "log in with `hf auth login` or set HF_TOKEN"
    )


def _unreachable(name: HubName, error: Exception) -> HubUnreachable:
    return HubUnreachable(f"cannot get {name} from the hub ({_in_one_line(error)}): {_otherwise(name)}")


def _otherwise(name: HubName) -> str:
    return (
        f"where there is a network, run `hf download {name.repository} --local-dir FOLDER`, copy FOLDER "
        "here, and name it in place of the id"
    )


def _in_one_line(error: Exception) -> str:
    """The error without line breaks, and without what follows an address's question mark: a signature."""
    words = (word.partition("?")[0] for word in str(error).split())
    return f"{type(error).__name__}: {' '.join(words)}"[:_MAX_ERROR]
