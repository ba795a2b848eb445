"""An exported folder to the Hugging Face hub, in one commit."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from sdpo.errors import ConfigError, SdpoError, first_line
from sdpo.models.quiet import quiet

_ID = re.compile(r"[^/\s]+/[^/\s]+")


def check_repository(name: str) -> None:
    """Raises `ConfigError` unless `name` is `OWNER/NAME`."""
    if not _ID.fullmatch(name):
        raise ConfigError(f"--push {name!r}: write OWNER/NAME, such as ada/quickstart")


def push_folder(folder: Path, repository: str, *, private: bool = True) -> str:
    """Upload `folder` to the model repository `OWNER/NAME`, made if it is not there (private, but
    for `private=False`), and return its address. Raises `SdpoError`."""
    check_repository(repository)
    api = HfApi()
    try:
        with quiet():
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(
                folder_path=folder,
                repo_id=repository,
                commit_message="Weights, tokenizer and card from sdpo export",
            )
    except HFValidationError as error:
        raise ConfigError(f"--push {repository!r}: {first_line(error)}") from error
    except Exception as error:
        # Whose errors come out depends on the HTTP library that this version of the hub takes.
        raise SdpoError(
            f"--push {repository!r}: the hub refused or cannot be reached ({first_line(error)}); "
            f"run `hf auth login` with a token that may write there. {str(folder)!r} is complete: "
            f"`hf upload {repository} {folder}` sends it"
        ) from error
    return str(address)
