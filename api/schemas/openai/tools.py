"""Tools that a model may call, and forms that its answer has to have."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from api.schemas.openai.messages import Lenient

MAX_TOOLS = 128

FunctionName = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")
]


class FunctionDefinition(Lenient):
    name: FunctionName
    description: Annotated[str, StringConstraints(max_length=2**14)] | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema of an object; none for a function without arguments."""
    strict: bool | None = None


class Tool(Lenient):
    type: Literal["function"]
    function: FunctionDefinition


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]


class NamedFunction(Lenient):
    name: FunctionName


class NamedTool(Lenient):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class JsonSchemaFormat(Lenient):
    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextFormat(Lenient):
    type: Literal["text"]


class JsonObjectFormat(Lenient):
    type: Literal["json_object"]


class JsonSchemaResponseFormat(Lenient):
    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaResponseFormat, Field(discriminator="type")
]


def plain(part: Any) -> Any:
    """A part of a request as JSON has it."""
    if isinstance(part, BaseModel):
        return part.model_dump(by_alias=True, exclude_none=True)
    return part
