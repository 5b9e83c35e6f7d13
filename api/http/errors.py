"""Errors of HTTP: malformed JSON, body too large, a method that a path has not, a page that may not
ask."""

from market.errors import InvalidRequest


class MalformedJson(InvalidRequest):
    code = "malformed_json"
    status = 400
    title = "Malformed JSON"


class BodyTooLarge(InvalidRequest):
    code = "body_too_large"
    status = 413
    title = "Body too large"


class MethodNotAllowed(InvalidRequest):
    code = "method_not_allowed"
    status = 405
    title = "Method not allowed"


class PreflightRefused(InvalidRequest):
    """The page's origin, or the method that it asks for, is not allowed."""

    code = "preflight_refused"
    status = 400
    title = "Cross-origin request refused"
