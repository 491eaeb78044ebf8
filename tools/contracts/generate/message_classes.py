"""gen/postbus/**/__init__.py: betterproto's classes with faster constructors, access and stubs.

The constructor that betterproto inherits from dataclasses iterates over all fields twice, and is
several times slower.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["with_constructors", "with_stubs"]

_STUB = "(betterproto.ServiceStub)"
_IMPORT = (
    "from postbus_runtime.message_access import PLACEHOLDER, get_set_attribute, set_attribute\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    name: str
    annotation: str
    group: str
    optional: bool


def with_constructors(source: str) -> str:
    """Return betterproto's module `source` with explicit constructors."""
    lines = source.splitlines(keepends=True)
    module = ast.parse(source)
    found = [(node, list(_fields(node))) for node in module.body if isinstance(node, ast.ClassDef)]
    messages = [(node, fields) for node, fields in found if fields and not _is_custom(node, fields)]
    for node, fields in reversed(messages):
        lines.insert(node.end_lineno or 0, "\n" + _constructor(fields))
    if messages:
        first = min(node.decorator_list[0].lineno for node, _ in found if node.decorator_list)
        lines.insert(first - 1, _IMPORT + "\n\n")
    return "".join(lines)


def with_stubs(source: str) -> str:
    """Return betterproto's module `source` with the base class of stubs from the runtime."""
    if _STUB not in source:
        return source
    imports = "import betterproto\nfrom postbus_runtime.stubs import ServiceStub\n"
    return source.replace(_STUB, "(ServiceStub)").replace("import betterproto\n", imports, 1)


def _fields(message: ast.ClassDef) -> Iterator[_Field]:
    for statement in message.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Call):
            options = {
                keyword.arg: ast.literal_eval(keyword.value)
                for keyword in statement.value.keywords
                if keyword.arg in {"group", "optional"}
            }
            yield _Field(
                name=ast.unparse(statement.target),
                annotation=ast.unparse(statement.annotation),
                group=options.get("group", ""),
                optional=options.get("optional", False),
            )


def _is_custom(message: ast.ClassDef, fields: list[_Field]) -> bool:
    """Return whether betterproto's own constructor must stay: it warns of deprecated fields."""
    methods = any(isinstance(statement, ast.FunctionDef) for statement in message.body)
    return methods or any(field.name == "self" for field in fields)


def _constructor(fields: list[_Field]) -> str:
    parameters = "".join(
        f"        {field.name}: {field.annotation} = {_default(field)},\n" for field in fields
    )
    values = "".join(f'            "{field.name}": {field.name},\n' for field in fields)
    present = " or ".join(_is_present(field) for field in fields)
    groups = ", ".join(f'"{group}": {_current(group, fields)}' for group in _groups(fields))
    return (
        f"    def __init__(\n        self,\n{parameters}    ) -> None:\n"
        f'        set_attribute(self, "__dict__", {{\n{values}'
        f'            "_serialized_on_wire": {present},\n'
        '            "_unknown_fields": b"",\n'
        f'            "_group_current": {{{groups}}},\n'
        "        })\n\n"
        "    __getattribute__ = get_set_attribute\n"
    )


def _default(field: _Field) -> str:
    return "None" if field.optional else "PLACEHOLDER"


def _is_present(field: _Field) -> str:
    present = f"{field.name} is not PLACEHOLDER"
    return f"({present} and {field.name} is not None)" if field.optional else present


def _groups(fields: list[_Field]) -> list[str]:
    return list(dict.fromkeys(field.group for field in fields if field.group))


def _current(group: str, fields: list[_Field]) -> str:
    """Return the expression for the set member of a oneof: the last argument, as in betterproto."""
    members = [field.name for field in fields if field.group == group]
    return " else ".join(
        [*(f'"{name}" if {name} is not PLACEHOLDER' for name in reversed(members)), "None"]
    )
