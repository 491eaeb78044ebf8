"""Stored MongoDB documents as instances of ODMantic models."""

from collections.abc import Callable
from datetime import datetime
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, Union, cast, get_args, get_origin

from bson import ObjectId
from odmantic import Model

__all__ = ["document_reader"]

M = TypeVar("M", bound=Model)
Document = dict[str, Any]

_BSON_TYPES: Final = (str, int, float, bool, bytes, datetime, ObjectId, NoneType)


def document_reader(model: type[M]) -> Callable[[Document], M]:
    """Return a function that builds an instance of `model` from a stored document.

    The function does not validate again what was validated before it was stored, if the driver
    returns every field in the type of the model. Other models (embedded models, enums, renamed
    keys) are parsed by ODMantic, which takes several times as long.
    """
    keys = {getattr(field, "key_name", "") for field in model.__odm_fields__.values()}
    if keys != {"_id", *model.model_fields} - {"id"} or not all(
        _is_bson_type(field.annotation) for field in model.model_fields.values()
    ):
        return model.model_validate_doc

    def read(document: Document) -> M:
        instance = cast("M", model.model_construct(id=document["_id"], **document))
        # ODMantic adds the name of each assigned field to this set; its own __init__ creates it
        object.__setattr__(instance, "__fields_modified__", set())
        return instance

    return read


def _is_bson_type(annotation: Any) -> bool:
    """Return whether the driver returns values of this type as they were stored."""
    if annotation in _BSON_TYPES:
        return True
    return get_origin(annotation) in (list, Union, UnionType) and all(
        _is_bson_type(argument) for argument in get_args(annotation)
    )
