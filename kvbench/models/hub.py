"""Models of the Hugging Face hub: one pinned commit, safetensors only, no remote code."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

from kvbench.errors import FetchError
from kvbench.models.registry import ModelEntry
from kvbench.storage.folders import storage_errors

FILES = ["*.json", "*.jinja", "*.txt", "*.model", "model*.safetensors"]


def snapshot_folder(entry: ModelEntry, fetch: bool = True) -> Path:
    """Local folder of the entry's pinned commit, downloaded when it is not in the hub's own cache.

    Raises:
        FetchError: no network, no access, no such commit, or the cache cannot be written.
    """
    where = f"{entry.repo}@{entry.revision[:8]}"
    try:
        with storage_errors(Path(constants.HF_HUB_CACHE), "HF_HUB_CACHE"):
            folder = snapshot_download(
                entry.repo, revision=entry.revision, allow_patterns=FILES, local_files_only=not fetch
            )
    except GatedRepoError as error:
        raise FetchError(f"{where} is gated: accept its terms on the hub and log in with `hf auth login`") from error
    except LocalEntryNotFoundError as error:
        reason = "the hub cannot be reached" if fetch else "fetching is switched off"
        raise FetchError(f"{where} is not in the hub's local cache and {reason}") from error
    except HfHubHTTPError as error:
        raise FetchError(f"cannot fetch {where} from the hub: {str(error).splitlines()[0]}") from error
    return Path(folder)
