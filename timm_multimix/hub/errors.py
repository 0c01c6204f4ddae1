"""What went wrong with the Hub, as a sentence that says what to do."""
from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Optional, TypeVar

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, get_token, validate_repo_id

from ..errors import SettingError

_logger = logging.getLogger(__name__)
T = TypeVar('T')

LONGEST_WAIT = 600.0
LOG_IN = 'Log in with `hf auth login`, or set HF_TOKEN'
_TOKEN = re.compile(r'hf_[A-Za-z0-9]{10,}')


class HubError(SettingError):
    """The Hub refused, or could not be reached.

    Attributes:
        passing: whether the same may work later.
        wait: seconds after which it may, where the Hub said so.
    """

    def __init__(self, message: str, passing: bool = False, wait: Optional[float] = None) -> None:
        super().__init__(message)
        self.passing, self.wait = passing, wait


def scrub(text: str, token: Optional[str] = None) -> str:
    """The text without anything that looks like a token of the Hub, or is the one in use."""
    for secret in filter(None, (token, get_token())):
        text = text.replace(secret, 'hf_…')
    return _TOKEN.sub('hf_…', text)


def check_repo_id(repo_id: str, setting: str = 'repo_id') -> str:
    """Raise `SettingError` unless it names a repository as user/name."""
    try:
        validate_repo_id(repo_id)
        if repo_id.count('/') != 1:
            raise HFValidationError('it has no user')
    except HFValidationError as e:
        raise SettingError(f'{setting} is {repo_id!r}, but a repository of the Hub is named user/name (or '
                           f'organisation/name), of letters, digits, "-", "_" and ".".') from e
    return repo_id


def offline() -> bool:
    """Whether HF_HUB_OFFLINE was set when the process started."""
    return bool(constants.HF_HUB_OFFLINE)


def check_network() -> None:
    """Raise `HubError` where the Hub cannot be asked. One try: huggingface_hub makes many of every file."""
    if offline():
        raise HubError('HF_HUB_OFFLINE is set')
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as e:  # of its HTTP client, which differs between versions
        raise HubError(f'{constants.ENDPOINT} cannot be reached ({_first_line(e) or type(e).__name__})', True) from e


def hub_error(error: Exception, repo_id: str, revision: Optional[str] = None, writing: bool = False,
              token: Optional[str] = None) -> HubError:
    """What huggingface_hub raised, for people: which repository, what the Hub said, what to do."""
    if isinstance(error, HubError):
        return error
    causes = list(_causes(error))
    response: Any = next((r for e in causes if (r := getattr(e, 'response', None)) is not None), None)
    status = getattr(response, 'status_code', None)
    cause = next((e for e in causes if getattr(e, 'response', None) is response), error)
    where = f'{repo_id} (revision {revision})' if revision else repo_id
    if any(isinstance(e, OfflineModeIsEnabled) for e in causes) or (offline() and isinstance(
            error, LocalEntryNotFoundError)):
        return HubError(f'HF_HUB_OFFLINE is set, and the cache of huggingface_hub does not hold what is needed of '
                        f'{where}. Unset it and run this once with a network, or copy the repository to a folder and '
                        f'name that: local-dir:FOLDER.')
    if isinstance(cause, GatedRepoError):
        return HubError(f'{repo_id} is gated: ask for access at {constants.ENDPOINT}/{repo_id}. {LOG_IN}.')
    if isinstance(cause, RevisionNotFoundError):
        return HubError(f'{repo_id} has no revision {revision or "main"!r}: name a branch, tag or commit of it.')
    known = get_token() is not None or token is not None
    if status == 401 and (writing or known):
        return HubError(f'The Hub does not accept the token for {repo_id} (401). {LOG_IN} to a valid one'
                        + (' that may write.' if writing else '.') if known else
                        f'The Hub does not know who writes to {repo_id} (401). {LOG_IN} to a token that may write.')
    if isinstance(cause, RepositoryNotFoundError) or (
            status in (401, 404) and not isinstance(cause, EntryNotFoundError)):
        return HubError(f'There is no repository {repo_id} on the Hub, or it is private and '
                        + ('this token may not see it.' if known else f'you are not logged in. {LOG_IN}.'))
    if status == 403:
        return HubError(f'The Hub forbids this token to {"write to" if writing else "read"} {repo_id} (403). It needs '
                        f'{"write" if writing else "read"} permission there: {constants.ENDPOINT}/settings/tokens. '
                        f'{scrub(_said(response), token)}'.rstrip())
    if status == 429:
        wait = _retry_after(response)
        return HubError('The Hub says: too many requests (429). Try again '
                        + (f'in {wait:.0f} s.' if wait else 'later.'), True, wait)
    if status is not None and (status >= 500 or status == 408):
        return HubError(f'The Hub has a problem of its own (status {status}) with {repo_id}. Try again later.', True)
    if status is not None:
        said = f'{_first_line(cause, token)} {scrub(_said(response), token)}'.rstrip()
        return HubError(f'The Hub refused {where}: {said}')
    last = causes[-1]  # where the chain began: a refused connection, a full disk
    text = _first_line(last, token)
    network = not isinstance(last, (ValueError, TypeError)) or type(last).__name__ == 'JSONDecodeError'
    return HubError(f'{"Pushing to" if writing else "Reading"} {where} failed: {type(last).__name__}: {text}', network)


def retried(action: Callable[[], T], understood: Callable[[Exception], HubError], waits: tuple[float, ...]) -> T:
    """What the action gives, tried again after each of these seconds, or more if the Hub asks for more.

    huggingface_hub repeats most single requests itself; this is for the others, and for what lasts longer.
    """
    for wait in (*waits, None):
        try:
            return action()
        except Exception as e:  # of huggingface_hub, of its HTTP client, of the operating system
            if isinstance(e, SettingError) and not isinstance(e, HubError):
                raise
            error = understood(e)
            if wait is None or not error.passing:
                raise error from e
            seconds = min(max(wait, error.wait or 0), LONGEST_WAIT)
            _logger.warning('%s Trying again in %.0f s.', error, seconds)
            time.sleep(seconds)
    raise AssertionError


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: Optional[BaseException] = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _first_line(error: BaseException, token: Optional[str] = None) -> str:
    """Without tokens, and only then cut."""
    return next((line.strip() for line in scrub(str(error), token).splitlines() if line.strip()), '')[:300]


def _said(response: Any) -> str:
    said = getattr(response, 'headers', {}).get('X-Error-Message')
    return f'It says: {said}' if said else ''


def _retry_after(response: Any) -> Optional[float]:
    """Seconds, from Retry-After or from the header RateLimit: "api";r=0;t=55."""
    headers = response.headers
    if str(headers.get('Retry-After', '')).strip().isdigit():
        return float(headers['Retry-After'])
    found = re.search(r';\s*t\s*=\s*(\d+)', headers.get('RateLimit', '') or '')
    return float(found[1]) if found else None
