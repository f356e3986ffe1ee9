"""huggingface_hub kept quiet, and its errors as gencli's."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from gencli.checkpoints.cache import HubId
from gencli.errors import GencliError

CHUNK = 2**18  # bytes; what a break loses at most


@contextmanager
def library(wanted: HubId) -> Iterator[None]:
    """huggingface_hub as gencli uses it: it says nothing itself, and what it raises comes in gencli's words.

    Import the library inside only. Raises GencliError for whatever kept it from getting `wanted`.
    """
    # Read when the library is imported: no requests and headers that only count users.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from huggingface_hub import constants
        from huggingface_hub.utils import logging

        logging.get_logger("huggingface_hub").setLevel("CRITICAL")
        # Small steps lose little in a break; hf_transfer, in older versions, resumes nothing.
        for name, value in {"DOWNLOAD_CHUNK_SIZE": CHUNK, "HF_HUB_ENABLE_HF_TRANSFER": False}.items():
            setattr(constants, name, value)
        try:
            yield
        except GencliError:
            raise
        except Exception as error:
            if (known := _explain(wanted, error)) is None:
                raise
            raise known from error


def _explain(wanted: HubId, error: Exception) -> GencliError | None:
    """What an error of the library means; None for what is none of its own."""
    from huggingface_hub import constants, get_token
    from huggingface_hub import errors as hub

    address = f"{constants.ENDPOINT}/{wanted.repo}"
    token = get_token()
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    message = response.headers.get("X-Error-Message") if response is not None else None
    if isinstance(error, hub.GatedRepoError):
        hint = f"ask for access, or accept its terms, at {address}"
        hint += ", signed in as the owner of your token" if token else "; then set HF_TOKEN to a token of yours"
        return GencliError(f"{wanted} is gated: its owner decides who may fetch it", hint)
    if isinstance(error, hub.RevisionNotFoundError):
        return GencliError(f"{wanted.repo} has no revision {wanted.revision!r}", f"its branches and tags: {address}")
    if status == 401 and token and "credentials" in (message or ""):
        return GencliError(
            f"{wanted}: the hub does not accept your token", "check HF_TOKEN, or the one of `hf auth login`"
        )
    if isinstance(error, hub.RepositoryNotFoundError) or status in (401, 404):
        hint = "check the name" + ("" if token else "; for a private one set HF_TOKEN to a token of yours")
        return GencliError(f"no model {str(wanted)!r}: not on this machine, and not at {constants.ENDPOINT}", hint)
    if isinstance(error, hub.HFValidationError):
        return GencliError(f"{str(wanted)!r} is no id of a model: {_one_line(error)}")
    if status == 429:
        return GencliError(f"{wanted}: the hub asks to slow down (429)", "try again in some minutes, or set HF_TOKEN")
    if status is not None:
        return GencliError(f"{wanted}: the hub answers {status}{': ' + message if message else ''}")
    if is_network(error):
        return GencliError(
            f"cannot fetch {wanted} from {constants.ENDPOINT}: {_one_line(error)}",
            "what has been fetched is kept; run it again and it goes on from there",
        )
    return None


def is_network(error: Exception) -> bool:
    """Whether a connection failed: with an error of the HTTP library, which is another one from version to version."""
    module = type(error).__module__.partition(".")[0]
    below = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "huggingface_hub"}
    return module in below or (isinstance(error, OSError) and error.errno is None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
