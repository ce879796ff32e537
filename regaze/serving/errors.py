"""Errors of a request, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """A request that gets no answer.

    Args:
        status: HTTP status.
        message: The error, its reason, and the cure.
        param: The field that is wrong.
        code: A word for programs.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kind = _KINDS.get(self.status, "invalid_request_error")
        said = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": said}


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """An error of the request's own: 400."""
    return ApiError(400, message, param=param, code=code)
