"""Convert pydantic's reports to one sentence with the parameter, the value and the valid range."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ConfigDict, ValidationError

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""Settings of every configuration class: no conversion between types, no unknown names, no NaN or infinity."""


class ConfigError(ValueError):
    """Error for a parameter with an invalid value.

    The message contains the parameter, the value and the valid range.
    """


class Parameter(NamedTuple):
    """Description of one configuration parameter, shown by the command-line help."""

    name: str
    kind: str  # int, float, bool, str, a choice or a tuple
    choices: tuple[str, ...]  # the options of a choice; empty for other kinds
    range: str  # such as "0 to 1"; empty if the parameter has no range
    default: Any
    meaning: str


def parameters_of(cls: type) -> list[Parameter]:
    """Return the parameters of one configuration class, in the order of their definition."""
    found = []
    for name, info in cls.__pydantic_fields__.items():
        bounds = [
            getattr(rule, side) for side in ("ge", "le") for rule in info.metadata if hasattr(rule, side)
        ]
        options = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
        kind = "choice" if options else getattr(info.annotation, "__name__", "tuple")
        span = f"{bounds[0]:.10g} to {bounds[1]:.10g}" if len(bounds) == 2 else ""
        found.append(Parameter(name, kind, options, span, info.default, info.description or ""))
    return found


def one_sentence(cls: type) -> type:
    """Make a pydantic dataclass raise ConfigError with one sentence instead of pydantic's report."""
    construct: Callable[..., None] = cls.__init__

    @wraps(construct)
    def __init__(self: Any, *args: Any, **values: Any) -> None:  # noqa: ANN401, N807
        try:
            construct(self, *args, **values)
        except ValidationError as error:
            raise _config_error(cls, error) from None

    cls.__init__ = __init__
    return cls


def _config_error(cls: type, error: ValidationError) -> ConfigError:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    field, *places = first["loc"]
    known = {parameter.name: parameter for parameter in parameters_of(cls)}
    if field not in known:
        return ConfigError(f"There is no parameter {shortened(field)}.")
    value = shortened(first["input"])
    where = f"{field}{''.join(f'[{place}]' for place in places)}"
    if first["type"] in ("greater_than_equal", "less_than_equal") and known[field].range:
        return ConfigError(f"{where} = {value} is outside its range, {known[field].range}.")
    if first["type"] == "string_pattern_mismatch":
        return ConfigError(f"{where} = {value} is not one of: {known[field].meaning}.")
    if first["type"] == "literal_error":
        return ConfigError(f"{where} = {value} is not one of {known[field].choices}.")
    if first["type"] == "missing":
        return ConfigError(f"{where} is missing.")
    if first["msg"].startswith("Input should be"):
        return ConfigError(f"{where} = {value}{first['msg'].replace('Input should be', ' is not')}.")
    return ConfigError(f"{where} = {value} is not valid: {first['msg']}.")


def shortened(value: Any, limit: int = 60) -> str:  # noqa: ANN401
    """Return the repr of a value on one line of at most about `limit` characters."""
    if isinstance(value, int) and not -(10**limit) < value < 10**limit:
        return "an integer of more than 60 digits"
    text = repr(value[: limit + 1] if isinstance(value, str | bytes | list | tuple) else value)
    return text if len(text) <= limit + 4 else f"{text[:limit]}..."
