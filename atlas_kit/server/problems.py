"""What goes wrong, as a client is told: a status, one sentence, and a code; never a path of this machine.

An endpoint raises ``ApiError``, or lets an ``AtlasError`` through; each API family writes it in its own shape.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from atlas_kit.errors import (
    AtlasError,
    BusyError,
    ClosedError,
    ConflictError,
    DataTooLargeError,
    DivergedError,
    FileAccessError,
    FileCorruptError,
    InvalidParamError,
    KeyNotFoundError,
    KeyRequiredError,
    LockedError,
    MagicMismatchError,
    NoSuchFileError,
    OutOfMemoryError,
    VersionMismatchError,
    WrongModelError,
)

#: The ``type`` of an error by its status, as OpenAI names them.
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
    507: "server_error",
}
#: What an error of the library is to a client; the first that fits.
_STATUS: tuple[tuple[type[AtlasError], int, str | None], ...] = (
    (BusyError, 429, "too_many_requests"),
    (ClosedError, 503, "shutting_down"),
    (DivergedError, 500, "memory_diverged"),
    (WrongModelError, 409, "wrong_model"),
    (KeyNotFoundError, 404, "not_found"),
    (NoSuchFileError, 404, "not_found"),
    (FileCorruptError, 409, "damaged_file"),
    (MagicMismatchError, 409, "damaged_file"),
    (VersionMismatchError, 409, "wrong_version"),
    (LockedError, 409, "locked"),
    (KeyRequiredError, 409, "encrypted"),
    (DataTooLargeError, 400, "too_large"),
    (ConflictError, 503, "file_in_use"),
    (FileAccessError, 507, "not_accessible"),
    (OutOfMemoryError, 503, "out_of_memory"),
    (InvalidParamError, 400, None),
)
#: A name at the beginning of a sentence, which is written as it is: a property's, a library's.
_NAME = re.compile(r"\w+[._]\w")
#: The property that names a session in most requests.
SESSION = "atlas.session_id"
GENERIC = "Something went wrong in the server; its log says what, under this request's id."


class ApiError(Exception):
    """Something that a client is told.

    Parameters
    ----------
    status
        Of HTTP.
    message
        One sentence.
    param
        The property that is at fault.
    code
        A word for programs.
    retry_after
        Seconds after which it makes sense to try again.
    kind
        The ``type`` where it does not follow from the status.
    more
        What OpenAI's shape tells beside, as llama-server does.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        kind: str | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after, self._kind, self.more = retry_after, kind, dict(more or {})

    @property
    def type(self) -> str:
        """The kind of error, as OpenAI and llama-server name it."""
        return self._kind or self._by_status

    @property
    def _by_status(self) -> str:
        return TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def openai(self) -> dict[str, Any]:
        """Return it as OpenAI's clients read it."""
        found = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {**found, **self.more}}

    def anthropic(self) -> dict[str, Any]:
        """Return it as Anthropic's clients read it."""
        kinds = {"server_error": "api_error", "unavailable_error": "overloaded_error"}
        kind = "request_too_large" if self.status == 413 else kinds.get(self._by_status, self._by_status)
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    @property
    def headers(self) -> dict[str, str]:
        """What goes into the answer's header."""
        found = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return {**found, "www-authenticate": "Bearer"} if self.status == 401 else found


def problem_of(error: BaseException) -> ApiError:
    """Return what a client is told about an error; the sentences of the library are used without their paths."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RecursionError):
        return ApiError(400, "The request is nested too deeply.", code="invalid_value")
    if isinstance(error, AtlasError):
        for kind, status, code in _STATUS:
            if isinstance(error, kind):
                retry = 1 if status in (429, 503) else None
                return ApiError(status, _sentence(error), param=error.key, code=code, retry_after=retry)
    return ApiError(500, GENERIC, code="internal_error")


@contextlib.contextmanager
def naming(param: str) -> Iterator[None]:
    """Within it, what is wrong with a ``session_id`` is wrong with the property that the client has named it in."""
    try:
        yield
    except ApiError as error:
        error.param = param if error.param == "session_id" else error.param
        raise
    except AtlasError as error:
        error.key = param if error.key == "session_id" else error.key
        raise


def _sentence(error: AtlasError) -> str:
    """Return an error as a client reads it.

    >>> _sentence(InvalidParamError("window_size is 5", hint="Choose 64 to 8192."))
    'window_size is 5. Choose 64 to 8192.'
    >>> _sentence(InvalidParamError("there is no such file."))
    'There is no such file.'
    """
    message = error.message
    if not _NAME.match(message):
        message = message[:1].upper() + message[1:]
    message = message.rstrip(".") + "."
    # whom a memory belongs to is not for a client to overrule
    return f"{message} {error.hint}" if error.hint and not isinstance(error, WrongModelError) else message


#: What pydantic finds wrong with a value, in plain words: its own are for who wrote the schema.
_WORDS = {
    "missing": "this property is missing",
    "too_short": "it must have at least {min_length} {items}",
    "too_long": "it must have at most {max_length} {items}",
    "string_too_short": "it must have at least {min_length} {characters}",
    "string_too_long": "it must have at most {max_length} {characters}",
    "string_type": "it must be a text",
    "string_unicode": "the text holds half a character",
    "list_type": "it must be a list",
    "dict_type": "it must be an object",
    "model_type": "it must be an object",
    "model_attributes_type": "it must be an object",
    "bool_type": "it must be true or false",
    "bool_parsing": "it must be true or false",
    "int_type": "it must be a whole number",
    "int_parsing": "it must be a whole number",
    "int_parsing_size": "the number has too many digits",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a number",
    "float_parsing": "it must be a number",
    "finite_number": "it must be a finite number",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
    "literal_error": "it must be {expected}",
}


def in_words(found: Mapping[str, Any]) -> str:
    """Return what is wrong with a value of a request, as pydantic found it, without a full stop.

    >>> in_words({"type": "too_short", "msg": "...", "ctx": {"min_length": 1}})
    'it must have at least 1 item'
    >>> in_words({"type": "value_error", "msg": "Value error, Choose one of both"})
    'choose one of both'
    """
    words = _WORDS.get(str(found.get("type")))
    if words is not None:
        given = {
            name: f"{value:,.16g}"
            if isinstance(value, (int, float)) and not isinstance(value, bool)
            else value
            for name, value in dict(found.get("ctx") or {}).items()
        }
        one = given.get("min_length", given.get("max_length")) == "1"
        given |= {"items": "item" if one else "items", "characters": "character" if one else "characters"}
        with contextlib.suppress(KeyError):
            return words.format_map(given)
    message = str(found["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def too_long(message: str, tokens: int, room: int, *, param: str) -> ApiError:
    """Return what a client is told whose text of ``tokens`` does not go into a context of ``room``.

    OpenAI's clients look at the code, llama-server's at the type and the two numbers.
    """
    return ApiError(
        400, message, param=param, code="context_length_exceeded", kind="exceed_context_size_error",
        more={"n_prompt_tokens": tokens, "n_ctx": room},
    )  # fmt: skip


def unavailable(message: str = "The model is still loading.") -> ApiError:
    """Return what a client is told that comes too early."""
    return ApiError(503, message, code="unavailable", retry_after=1)
