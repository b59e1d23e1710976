"""The keys of a run spec and the types of their values."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from launcher.common.yaml_lines import Loc
from launcher.runspec.sections import RunSpec, Section


def keys_at(loc: Loc) -> list[str]:
    """Return the keys allowed in the section at ``loc``; none if there is no section."""
    annotation: Any = RunSpec
    for key in loc:
        section = section_of(annotation)
        if isinstance(key, int):
            annotation = element_section_of(annotation)
        elif section is not None and key in section.model_fields:
            annotation = section.model_fields[key].annotation
        else:
            return []
    found = section_of(annotation)
    return list(found.model_fields) if found else []


def section_of(annotation: Any) -> type[Section] | None:
    """Return the section class of a key's type, or None for a plain value."""
    return next((item for item in _members(annotation) if isinstance(item, type) and issubclass(item, Section)), None)


def element_section_of(annotation: Any) -> type[Section] | None:
    """Return the section class of the elements of a key's type, if that is a list of sections."""
    lists = (item for item in _members(annotation) if get_origin(item) is tuple)
    return next((section for item in lists if (section := section_of(get_args(item)[0]))), None)


def is_text(loc: Loc) -> bool:
    """Return whether the value at ``loc`` is a text; of a key that does not exist it is not."""
    annotation: Any = RunSpec
    for key in loc:
        section = section_of(annotation)
        if section is not None and str(key) in section.model_fields:
            annotation = section.model_fields[str(key)].annotation
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            return False
    return str in _members(annotation)


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type, without what pydantic checks beside them."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, UnionType):
        return (annotation,)
    return tuple(member for item in get_args(annotation) for member in _members(item))
