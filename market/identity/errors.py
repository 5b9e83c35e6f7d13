"""Errors of identity: not authenticated, API keys, machine login (RFC 8628), unknown machine."""

from market.errors import Forbidden
from mesh.errors import MeshError, NotFound


class NotAuthenticated(MeshError):
    code = "not_authenticated"
    status = 401
    title = "Not authenticated"


class TokenMissing(NotAuthenticated):
    code = "token_missing"


class TokenInvalid(NotAuthenticated):
    code = "token_invalid"


class TokenExpired(NotAuthenticated):
    code = "token_expired"


class NonceUnknown(NotAuthenticated):
    code = "nonce_unknown"


class LoginMessageInvalid(NotAuthenticated):
    code = "login_message_invalid"


class LoginMessageExpired(NotAuthenticated):
    code = "login_message_expired"


class DomainMismatch(NotAuthenticated):
    code = "domain_mismatch"


class SignatureMismatch(NotAuthenticated):
    code = "signature_mismatch"


class SignatureExpired(NotAuthenticated):
    code = "signature_expired"


class MachineRevoked(NotAuthenticated):
    code = "machine_revoked"


class ApiKeyUnknown(NotAuthenticated):
    code = "api_key_unknown"


class ApiKeyRevoked(NotAuthenticated):
    code = "api_key_revoked"


class ApiKeyExpired(NotAuthenticated):
    code = "api_key_expired"


class ScopeMissing(Forbidden):
    """The caller's token or API key is not for this."""

    code = "scope_missing"


class ModelNotAllowed(Forbidden):
    """The API key is for other models."""

    code = "model_not_allowed"


class ApiKeyNotFound(NotFound):
    code = "api_key_not_found"


class TooManyApiKeys(MeshError):
    code = "too_many_api_keys"
    status = 409
    title = "Too many API keys"
    retry_useless = True


class DeviceLoginError(MeshError):
    """Of a machine's login. Beside our own ``code`` stands ``error``, where RFC 8628 puts it."""

    code = "device_login_error"
    status = 400
    title = "Not logged in"

    def problem(self) -> dict[str, object]:
        return super().problem() | {"error": self.code}


class AuthorizationPending(DeviceLoginError):
    code = "authorization_pending"


class SlowDown(DeviceLoginError):
    code = "slow_down"


class CodeExpired(DeviceLoginError):
    code = "expired_token"


class AccessDenied(DeviceLoginError):
    code = "access_denied"


class MachineNotFound(NotFound):
    code = "machine_not_found"


class UserCodeUnknown(NotFound):
    code = "user_code_unknown"
