"""Frozen dataclasses to json and back, and `--set a.b=c`.

A config is a frozen, keyword-only dataclass of numbers, strings, booleans, tuples and other configs. Where a field
may hold one of several configs (an image tower is a ViT or a ResNet), json carries the class name under `kind`.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, Union

C = TypeVar("C")


def to_dict(config: Any, *, defaults: bool = True) -> dict[str, Any]:
    """A config as plain json values; nested configs carry their class name under `kind`.

    Args:
        defaults: False leaves out what is at its default, so that a field that a later version adds changes nothing.
    """
    out: dict[str, Any] = {"kind": type(config).__name__}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if defaults or value != _default(field):
            out[field.name] = _plain(value, defaults)
    return out


def from_dict(cls: type[C], values: Any, where: str = "") -> C:
    """Rebuilds a config; unknown, missing or ill-typed fields raise ValueError naming field and nearest name."""
    where = where or cls.__name__
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected an object, found {values!r}")
    given = {name: value for name, value in values.items() if name != "kind"}
    if values.get("kind", cls.__name__) != cls.__name__:
        raise ValueError(f"{where}: is a {values['kind']}, expected a {cls.__name__}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in given:
        if name not in fields:
            raise ValueError(f"{where}: unknown field {name!r}{_nearest(name, fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise ValueError(f"{where}: field {name!r} is missing")
    return cls(**{name: _typed(hints[name], value, f"{where}.{name}") for name, value in given.items()})


def override(config: C, assignments: Iterable[str]) -> C:
    """Applies `path.to.field=value` assignments; values are json or bare words, parsed by the field's type."""
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment}: expected path=value, for example optim.lr=3e-4")
        config = _assign(config, path.strip().split("."), text.strip(), path)
    return config


def dumps(config: Any) -> str:
    """The config as indented json text."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def _assign(config: Any, path: list[str], text: str, whole: str) -> Any:
    if not dataclasses.is_dataclass(config):
        raise ValueError(f"--set {whole}: {type(config).__name__} has no field {path[0]!r}")
    names = [field.name for field in dataclasses.fields(config)]
    head, rest = path[0], path[1:]
    if head not in names:
        raise ValueError(f"--set {whole}: {type(config).__name__} has no field {head!r}{_nearest(head, names)}")
    hint, inner = typing.get_type_hints(type(config))[head], getattr(config, head)
    if not rest:
        value = _typed(hint, _parse(text, hint), f"--set {whole}")
    elif inner is None and len(rest) == 1:  # the first field of a config that was not there
        value = _typed(hint, {rest[0]: _parse(text, None)}, f"--set {whole}")
    else:
        value = _assign(inner, rest, text, whole)
    return dataclasses.replace(config, **{head: value})  # type: ignore[type-var]


def _parse(text: str, hint: Any) -> Any:
    """A value as json or as Python writes it; a word that the type names stays that word."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    if any(text in typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is Literal):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"none": None, "True": True, "False": False, "None": None}.get(text, text)


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _plain(value: Any, defaults: bool) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value, defaults=defaults)
    if isinstance(value, (tuple, list)):
        return [_plain(item, defaults) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item, defaults) for name, item in value.items()}
    return value


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type that `hint` declares, or a ValueError that says what was expected."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: {value!r} is not one of {', '.join(map(str, arguments))}")
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where}: expected a list, found {value!r}")
        repeated = len(arguments) == 2 and arguments[1] is Ellipsis
        if not repeated and len(value) != len(arguments):
            raise ValueError(f"{where}: expected {len(arguments)} values, found {len(value)}")
        inner = [arguments[0]] * len(value) if repeated else list(arguments)
        return tuple(_typed(kind, item, where) for kind, item in zip(inner, value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object, found {value!r}")
        return {_typed(arguments[0], k, where): _typed(arguments[1], v, where) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is type(None):
        hint = types.NoneType
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {value!r}")
    return value


def _one_of(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    configs = {getattr(choice, "__name__", ""): choice for choice in choices if dataclasses.is_dataclass(choice)}
    if isinstance(value, str) and value in configs:
        value = {"kind": value}
    if isinstance(value, dict) and configs:
        kind = value.get("kind")
        if kind is None and len(configs) == 1:
            kind = next(iter(configs))
        if kind not in configs:
            raise ValueError(f"{where}: kind is {kind!r}, expected one of {', '.join(configs)}")
        return from_dict(configs[kind], value, where)  # type: ignore[index]
    reasons = []
    for choice in choices:
        try:
            return _typed(choice, value, where)
        except ValueError as reason:
            reasons.append(str(reason))
    raise ValueError(reasons[0])


def _nearest(name: str, names: Iterable[str]) -> str:
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; nearest is {near[0]!r}" if near else f"; it has {', '.join(names)}"
