"""OpenAI's ``tools`` and ``tool_choice``: the functions that an answer may call, or must."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from market.errors import InvalidRequest
from market.jobs.structured_output.json_schema import SchemaCheck
from market.jobs.structured_output.response_format import NAME, is_strict

CODE = "tools_invalid"

MAX_TOOLS = 128
"""As OpenAI has it."""

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Function:
    """``arguments``: the JSON schema of its arguments, checked, as a grammar has it."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """The functions that an answer may call, and whether it must call one; with none, it calls
    none. ``single``: one call at most."""

    functions: tuple[Function, ...]
    required: bool
    single: bool


def tool_choice(
    tools: Sequence[Mapping[str, Any]],
    choice: str | Mapping[str, Any] | None,
    *,
    parallel: bool = True,
) -> ToolChoice:
    """What a request says of tools. Costly schemas take a processor for
    :data:`market.jobs.structured_output.json_schema.MAX_SECONDS`, in which other threads run: call
    this in a thread.

    Args:
        tools: As OpenAI's clients send them, parsed.
        choice: ``auto``, ``required``, ``none``, or an object that names a function or the allowed
            ones; ``auto`` if not given.
        parallel: Whether an answer may have several calls.

    Raises:
        InvalidRequest: ``tools_invalid``; the error has a JSON pointer to the place.
    """
    if choice == "none":
        return ToolChoice((), required=False, single=True)
    if not 1 <= len(tools) <= MAX_TOOLS:
        raise _wrong("/tools", f"there are 1 to {MAX_TOOLS}, or leave it out.")
    check = SchemaCheck(CODE)
    functions: dict[str, Function] = {}
    for index, tool in enumerate(tools):
        function = _function(tool, f"/tools/{index}", check)
        if function.name in functions:
            raise _wrong(f"/tools/{index}", f"there are two of the name {function.name}.")
        functions[function.name] = function
    if choice is None or isinstance(choice, str):
        names, mode = list(functions), choice or "auto"
    else:
        names, mode = _named(choice)
    if mode not in ("auto", "required"):
        raise _wrong("/tool_choice", "use auto, required, none, or name a function.")
    unknown = [name for name in names if name not in functions]
    if unknown:
        raise _wrong("/tool_choice", f"no tool has the name {unknown[0]!r}.")
    one = isinstance(choice, Mapping) and choice.get("type") == "function"
    chosen = tuple(functions[name] for name in dict.fromkeys(names))
    return ToolChoice(chosen, required=mode == "required", single=one or not parallel)


def _function(tool: Mapping[str, Any], where: str, check: SchemaCheck) -> Function:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        raise _wrong(f"{where}/type", "only tools of the type function are served.")
    described, where = tool.get("function"), f"{where}/function"
    if not isinstance(described, Mapping):
        raise _wrong(where, "it is an object with name, description and parameters.")
    name = described.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise _wrong(f"{where}/name", "it has 1 to 64 letters, digits, _, . and -.")
    strict = is_strict(described, where, CODE)
    parameters = described.get("parameters")
    if parameters is None:
        parameters = _NO_ARGUMENTS
    elif not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise _wrong(f"{where}/parameters", "it is a JSON schema of the type object.")
    schema = {"type": "object"} | parameters
    return Function(name, check.check(schema, strict=strict, where=f"{where}/parameters"))


def _named(choice: Mapping[str, Any]) -> tuple[list[str], str]:
    """The functions that a choice names, and whether one of them must be called."""
    kind = choice.get("type")
    if kind == "function":
        return [_name(choice, "/tool_choice")], "required"
    if kind == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        where = "/tool_choice/allowed_tools"
        if not isinstance(allowed, Mapping) or not isinstance(allowed.get("tools"), list):
            raise _wrong(where, "it is an object with mode and tools.")
        if not allowed["tools"]:
            raise _wrong(f"{where}/tools", "name one at least.")
        names = [_name(tool, f"{where}/tools/{at}") for at, tool in enumerate(allowed["tools"])]
        return names, str(allowed.get("mode"))
    raise _wrong("/tool_choice/type", "use function or allowed_tools.")


def _name(choice: object, where: str) -> str:
    """The function that an object names: in ``function``, or as Responses have it, itself."""
    named = choice.get("function", choice) if isinstance(choice, Mapping) else None
    name = named.get("name") if isinstance(named, Mapping) else None
    if not isinstance(name, str):
        raise _wrong(where, "it has the name of a function.")
    return name


def _wrong(place: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{place}: {reason}", code=CODE, param=place.split("/")[1])
