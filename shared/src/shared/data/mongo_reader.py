"""Stored documents as instances of ODMantic models."""

from collections.abc import Callable
from datetime import datetime
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin

from bson import ObjectId
from odmantic import Model
from odmantic.field import ODMField

__all__ = ["reader"]

M = TypeVar("M", bound=Model)
Document = dict[str, Any]

_PLAIN: Final = (str, int, float, bool, bytes, datetime, ObjectId, NoneType)


def reader(model: type[M]) -> Callable[[Document], M]:
    """Return what makes an instance of a stored document.

    Where a model has nothing but plain fields, what is stored is what was once an instance, and
    becomes one as what was pickled does: a tenth of the time that ODMantic takes to look at it once
    more.
    """
    keys = {
        field.key_name for field in model.__odm_fields__.values() if isinstance(field, ODMField)
    }
    plain = keys == {"_id", *model.model_fields} - {"id"} and all(
        _is_plain(field.annotation)
        and field.default_factory is None
        and not isinstance(field.default, list)
        for field in model.model_fields.values()
    )
    if not plain:
        return model.model_validate_doc
    defaults = {
        name: field.default for name, field in model.model_fields.items() if not field.is_required()
    }
    state = {
        "__pydantic_fields_set__": set(model.model_fields),  # for all the same: all are set
        "__pydantic_extra__": None,
        "__pydantic_private__": None,
    }
    modified: set[str] = set()  # for ODMantic's engine

    def read(document: Document) -> M:
        if not document.keys() <= keys:
            document = {key: value for key, value in document.items() if key in keys}
        values = defaults | document
        values["id"] = values.pop("_id")
        instance = model.__new__(model)
        instance.__setstate__({**state, "__dict__": values})
        object.__setattr__(instance, "__fields_modified__", modified)
        return instance

    return read


def _is_plain(annotation: Any) -> bool:
    """Whether MongoDB keeps values of a type as they are."""
    if annotation in _PLAIN:
        return True
    return get_origin(annotation) in (list, Union, UnionType) and all(
        _is_plain(argument) for argument in get_args(annotation)
    )
