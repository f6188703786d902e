"""`rlhf push RUN OWNER/NAME`: what a run leaves, to a model hub, in one commit.

One commit for all files, so the repository holds the old model or the new one. Each try starts by asking what is there:
files that arrived are not sent again, and a commit whose answer was lost is found and not made twice. The library tries single
requests again by itself, but not the ones that make the repository and the commit.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlhf import __version__
from rlhf.cli.common import Debug, reported
from rlhf.errors import RecipeError, RlhfError, SetupError, first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from rlhf.models.parcel import Parcel

TRIES = 6
PATIENCE = 120.0  # seconds without a byte from the hub; the library would wait for ever
# A repository's loaders take whatever of this kind lies there, whoever put it there.
OF_A_MODEL = (".safetensors", ".safetensors.index.json", "adapter_config.json")


def push(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's folder, or one of rlhf merge.", show_default=False)
    ],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Where to on the hub; made if need be.", show_default=False)
    ],
    private: Annotated[bool, typer.Option("--private", help="Make the repository for you alone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and say what would go where.")] = False,
    debug: Debug = False,
) -> None:
    """Upload what a run left (final/) to a model hub, in one commit.

    Needs a token that may write: hf auth login, or HF_TOKEN. Run it again after a fault: it goes on.
    """
    with reported(debug):
        from huggingface_hub import constants

        from rlhf.models.parcel import pack

        _refuse_odd_name(repository)
        parcel = pack(run, repository.partition("/")[2])
        size = f"{len(parcel.files)} files, {parcel.bytes / 1e6:,.1f} MB"
        typer.echo(f"{parcel.folder}: {size}, to {repository} at {constants.ENDPOINT}")
        for note in parcel.notes:
            typer.echo(f"note: {note}")
        if dry_run:
            typer.echo("dry run: nothing was sent")
        else:
            typer.echo(upload(parcel, repository, private))


def upload(parcel: Parcel, repository: str, private: bool) -> str:
    """Send the parcel and say where it is now.

    Raises SetupError without a token, a right to write or a connection, RecipeError for a repository that cannot take it,
    RlhfError where the hub refuses it.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    from rlhf.generation.engines.retry import backoff

    if constants.is_offline_mode():
        raise SetupError("HF_HUB_OFFLINE=1 forbids the network: unset it")
    if get_token() is None:
        raise SetupError(f"no token for {constants.ENDPOINT}: hf auth login, or set HF_TOKEN to one that may write")
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(library_name="rlhf", library_version=__version__)
    for tries in range(1, TRIES + 1):
        try:
            return _send(api, parcel, repository, private)
        except RlhfError:
            raise
        except Exception as error:
            fault = _below(error)
            if not _passes(fault) or tries == TRIES:
                raise _explained(fault, repository) from error
            wait = _asked_for(fault) or backoff(tries + 2)
            typer.echo(f"{first_line(fault)}; again in {wait:.0f} s ({tries} of {TRIES - 1})", err=True)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _send(api: HfApi, parcel: Parcel, repository: str, private: bool) -> str:
    from huggingface_hub import CommitOperationAdd, get_session

    get_session().timeout = PATIENCE
    api.create_repo(repository, private=private or None, exist_ok=True)  # None: as the owner's settings say
    before = api.model_info(repository)
    if private and not before.private:
        raise RecipeError(
            f"{repository} is there already, and public: make it private on the hub, or take another name"
        )
    there = {file.rfilename for file in before.siblings or ()}
    if others := sorted(name for name in there - set(parcel.files) if name.endswith(OF_A_MODEL) and "/" not in name):
        raise RecipeError(
            f"{repository}: holds {', '.join(others)} of another model, and together they would load as neither; "
            "remove the file there, or take another name"
        )
    # not upload_folder: it makes several commits of many files, and the first could be all that arrives
    commit = api.create_commit(
        repository,
        [CommitOperationAdd(name, file) for name, file in parcel.files.items()],
        commit_message=f"Upload what a {parcel.method} run left (rlhf {__version__})",
        parent_commit=before.sha,
    )
    if commit.oid == before.sha:
        return f"done: {repository} holds these files already ({commit.commit_url})"
    return f"done: {commit.commit_url} ({'private' if before.private else 'public'})"


def _refuse_odd_name(repository: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise RecipeError(f"{repository!r} is no OWNER/NAME: {first_line(error)}") from error
    if "/" not in repository:
        raise RecipeError(f"{repository!r} is no OWNER/NAME: say whose it is, as in me/{repository}")


def _below(error: BaseException) -> BaseException:
    """The fault itself, without the library's words on which file it happened to."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _response(fault: BaseException) -> Any:
    """The hub's answer; None where there was none."""
    from huggingface_hub.errors import HfHubHTTPError

    return fault.response if isinstance(fault, HfHubHTTPError) else None


def _is_of_the_network(fault: BaseException) -> bool:
    """Whether the hub did not answer a request, or a proxy's page came in place of its JSON."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of whatever transport the library has

    return _response(fault) is None and isinstance(fault, HTTPError | json.JSONDecodeError)


def _passes(fault: BaseException) -> bool:
    from rlhf.generation.engines.retry import passes

    response = _response(fault)
    return _is_of_the_network(fault) if response is None else passes(response.status_code)


def _asked_for(fault: BaseException) -> float | None:
    from rlhf.generation.engines.retry import retry_after

    response = _response(fault)
    return None if response is None else retry_after(response.headers.get("Retry-After"))


def _explained(fault: BaseException, repository: str) -> BaseException:
    """The fault in a user's words; one that nobody foresaw comes back as it is."""
    from huggingface_hub import constants

    hub, again = constants.ENDPOINT, "run the command again later: what arrived is not sent again"
    response = _response(fault)
    if response is None:
        # a ConnectionError comes from Xet's own storage, after its own tries of six minutes
        if _is_of_the_network(fault) or isinstance(fault, ConnectionError):
            return SetupError(f"{hub} cannot be reached ({first_line(fault)}): check the connection, and {again}")
        return RlhfError(f"{repository}: {fault}") if isinstance(fault, ValueError) else fault
    match response.status_code:
        case 401:
            return SetupError(
                f"{hub} refuses the token (401): hf auth login again, or set HF_TOKEN to one that may write"
            )
        case 403:
            return SetupError(f"{repository}: the token may not write there (403): take one that may, or another OWNER")
        case 404:
            return RecipeError(f"{repository}: {hub} knows no such owner or repository (404): check the spelling")
        case 412:
            return RlhfError(
                f"{repository}: somebody changed it meanwhile (412): look at it, and run the command again"
            )
        case status if _passes(fault):
            return SetupError(f"{hub} answers {status} after {TRIES} tries: {again}")
        case status:
            return RlhfError(f"{repository}: the hub refuses the files ({status}): {first_line(fault)}")
