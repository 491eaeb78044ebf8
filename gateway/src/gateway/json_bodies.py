"""JSON bodies of HTTP requests."""

from typing import Any

from gateway.parameters import Document, field_named, violation
from gateway.problems import HttpError
from gateway.update_masks import Resource
from postbus import reasons
from postbus.registry import HttpRule
from shared.errors import FieldViolation, ServiceError
from shared.protojson import read_json, takes_null
from shared.wire import invalid_fields

__all__ = ["JsonBody"]


class JsonBody:
    """The body of one HTTP binding in JSON."""

    def __init__(self, request: Any, rule: HttpRule, resource: Resource | None) -> None:
        """Prepare for the request with the descriptor `request`; `rule` has a body."""
        self._name = rule.body
        self._is_whole = rule.body == "*"
        self._resource = resource
        field = None if self._is_whole else field_named(request, rule.body)
        self._takes_null = field is not None and takes_null(field)

    def read(self, data: bytes) -> tuple[Document, Document]:
        """Return the part of the request in the body, and the members of a resource in it.

        Raises 400 if it is not JSON, or not an object where the body is the whole request; 422
        beyond the bounds of `read_json`.
        """
        try:
            value = read_json(data)
        except ServiceError as error:
            raise self._failure(error) from None
        members = {}
        if isinstance(value, dict):
            if self._resource is not None:
                value = self._resource.without_read_only(value)
                members = value.copy()
        elif self._is_whole:
            raise HttpError(reasons.NOT_AN_OBJECT, "The body must be a JSON object.")
        elif value is None and not self._takes_null:
            raise invalid_fields([violation(self._name, "type", "must not be null")])
        return (value if self._is_whole else {self._name: value}), members

    def _failure(self, error: ServiceError) -> ServiceError:
        """Return the error of a body that cannot be read; its paths begin with the field."""
        if error.reason == reasons.MALFORMED_JSON:
            return HttpError(error.reason, "The body is not valid JSON.")
        if self._is_whole or error.reason != reasons.INVALID_FIELDS:
            return error
        return invalid_fields(
            [
                FieldViolation(
                    field=f"{self._name}.{each.field}" if each.field else self._name,
                    rule=each.rule,
                    message=each.message,
                )
                for each in error.violations
            ],
            more=error.more_violations,
        )
