"""The kinds of incompatible changes, each with advice; docs/compatibility.md lists them."""

from enum import Enum

__all__ = ["Kind"]


class Kind(Enum):
    """A kind of change: its text in a finding, and the advice for the author of the change."""

    ROUTE_REMOVED = ("route removed", "Keep the old route as one of `additional_bindings`.")
    ROUTE_SHADOWED = (
        "route shadowed",
        "Give the new route a path that the old route does not match.",
    )
    ROUTE_SHADOWED_IN_PART = (
        "route shadowed in part",
        "Check that no client uses the new path with the old route.",
    )
    PARAMETERS_RENAMED = (
        "path parameters renamed",
        "Keep the names: arguments of generated clients have them.",
    )
    BODY_CHANGED = ("body changed", "Keep `body`, and add a route with the other one.")
    RESPONSE_BODY_CHANGED = (
        "response_body changed",
        "Keep `response_body`, and add a route with the other one.",
    )
    STATUS_CHANGED = ("status changed", "Keep `http_status`, and an empty response empty.")
    FIELD_MOVED = ("field moved", "Keep the field where it is, and add a route or another field.")

    METHOD_REMOVED = (
        "method removed",
        "Keep the rpc with `deprecated = true` until no client calls it.",
    )
    STREAMING_CHANGED = (
        "streaming changed",
        "Add an rpc with the other kind of request or response.",
    )
    REQUEST_TYPE_CHANGED = (
        "request type changed",
        "Keep the name of the message: `@type` of a frame contains it.",
    )
    RESPONSE_TYPE_CHANGED = (
        "response type changed",
        "Keep the name of the message: `@type` of a frame contains it.",
    )
    IDEMPOTENCY_WEAKENED = (
        "idempotency weakened",
        "Keep `idempotency_level`: callers repeat calls because of it. Add another rpc.",
    )

    ACCESS_TIGHTENED = (
        "access tightened",
        "Add an rpc with the narrower access, and deprecate this one.",
    )
    TOKEN_REQUIRED = (
        "access token now required",
        "Deploy the callers that pass a token first, or add another rpc.",
    )
    CALLERS_RESTRICTED = (
        "callers restricted",
        "Change the services that call the rpc first, and deploy them.",
    )
    ACCESS_LOOSENED = (
        "access loosened, check security",
        "Check that the additional callers may see and do everything that the rpc offers.",
    )
    TIMEOUT_LOWERED = (
        "default_timeout_ms lowered",
        "Check that no caller relies on the longer time.",
    )
    SECRET_ADDED = (
        "secret_response added",
        "Add another rpc: a repeated call no longer gets its stored reply.",
    )
    SECRET_REMOVED = (
        "secret_response removed, check security",
        "Check that no response holds a secret: responses are now stored for a day.",
    )
    VERSION_REMOVED = ("version removed", "Keep the option: ETag and If-Match depend on it.")
    VERSION_CHANGED = (
        "version changed",
        "Keep the field, and count both kinds of change in it: clients hold old ETags.",
    )
    EXPECTED_VERSION_REMOVED = (
        "expected_version removed",
        "Keep the option: without it If-Match is refused.",
    )
    EXPECTED_VERSION_CHANGED = (
        "expected_version changed",
        "Keep the field: If-Match holds values of its counter.",
    )
    ENDS_SESSION_REMOVED = (
        "ends_session removed",
        "Keep the option: without it a repeated call is refused.",
    )
    ENDS_SESSION_ADDED = (
        "ends_session added, check security",
        "Check that the handler refuses ended sessions itself.",
    )
    RATE_LOWERED = (
        "rate_limit lowered",
        "Check that no client makes more calls; announce the lower rate.",
    )
    REASON_ADDED = (
        "reason added",
        "Check that callers accept a reason that they do not know: they have its code.",
    )
    REASON_WITHDRAWN = (
        "reason withdrawn",
        "Check that the cause of the error cannot occur any more: callers react to the reason.",
    )
    REASONS_REPLACED = (
        "reasons replaced",
        "Keep the reasons of the old causes. Withdraw a reason whose cause cannot occur any more "
        "in a change of its own.",
    )
    REASON_REMOVED = ("reason removed", "Keep the value with `deprecated = true`.")
    REASON_CODE_CHANGED = (
        "code of the reason changed",
        "Add a reason with the other code: callers decide by the code whether to repeat a call.",
    )
    REASON_STATUS_CHANGED = (
        "HTTP status of the reason changed",
        "Add a reason with the other status.",
    )
    REASON_SCOPE_CHANGED = (
        "scope of the reason changed",
        "Check that callers accept the reason from methods that did not have it.",
    )
    OPTION_UNDECIDED = (
        "option changed, effect unknown",
        "Add a decision to tools/contracts/compatibility/option_decisions.py.",
    )

    MESSAGE_REMOVED = ("message removed", "Keep the message: it is sent by other releases.")
    FIELD_REMOVED = (
        "field removed",
        "Keep the field with `deprecated = true` until no client uses it.",
    )
    JSON_NAME_CHANGED = (
        "JSON name changed",
        "Keep the JSON name by `json_name`, or add a field beside the old one.",
    )
    FIELD_RENAMED = ("field renamed", "Keep the name: requests and field masks may contain it.")
    NUMBER_CHANGED = ("number changed", "Keep the number of the field.")
    NUMBER_REUSED = (
        "number reused",
        "Give the new field a new number. If this is only another name for the same field, keep "
        "`json_name`.",
    )
    NAME_REUSED = (
        "reserved name reused",
        "Choose another name: clients of earlier releases use this one for the old field or value.",
    )
    TYPE_CHANGED = ("type changed", "Add a field of the other type beside this one.")
    CARDINALITY_CHANGED = (
        "cardinality changed",
        "Add a repeated or singular field beside this one.",
    )
    PRESENCE_LOST = ("presence lost", "Keep the field `optional`.")
    PRESENCE_GAINED = (
        "presence gained",
        "Always set the field, without `optional`, or add an optional field beside it.",
    )
    ONEOF_CHANGED = ("oneof changed", "Keep the field in or out of the oneof; add a field instead.")
    ONEOF_EXTENDED = (
        "case added to oneof",
        "Check that readers ignore a case that they do not know.",
    )
    OUTPUT_ONLY_ADDED = (
        "field now OUTPUT_ONLY",
        "Keep the field writable: the values of old clients are ignored.",
    )

    ENUM_VALUE_REMOVED = ("enum value removed", "Keep the value with `deprecated = true`.")
    ENUM_VALUE_RENAMED = (
        "enum value renamed",
        "Keep the old name first and add the new one as an alias (`allow_alias`).",
    )
    ENUM_NUMBER_CHANGED = ("enum number changed", "Keep the number of the value.")
    ENUM_NUMBER_REUSED = (
        "enum number reused",
        "Give the new value a new number. If this is only another name, keep the old one as an "
        "alias (`allow_alias`).",
    )
    ENUM_VALUE_ADDED = (
        "enum value added",
        "Check that readers accept a value that they do not know.",
    )

    RULE_TIGHTENED = (
        "constraint tightened",
        "Keep the rule; check the new one in the handler of a new rpc or for a new field.",
    )
    RULE_LOOSENED = (
        "constraint loosened",
        "Keep the promise, or add a field with the looser rule.",
    )
    LIMIT_RELAXED = (
        "limit relaxed",
        "Check that readers accept the additional values; update the readers first.",
    )
    RULE_CHANGED = (
        "constraint changed, effect unknown",
        "Keep the rule, or compare both by hand and let the reviewer decide.",
    )
    RULE_RENAMED = (
        "id of a rule changed",
        "Keep the `id`: callers find it as the `rule` of a violation.",
    )
    NEW_FIELD_REQUIRED = (
        "new field required",
        "Let the field be left out, and give its absence a meaning.",
    )

    EVENT_REMOVED = (
        "event removed",
        "Publish the event until no consumer is bound to its routing key.",
    )
    SUBJECT_CHANGED = (
        "event subject changed",
        "Keep the subject: consumers order and group events by it. Add another event.",
    )
    AGGREGATE_VERSION_REMOVED = (
        "aggregate_version removed",
        "Keep the option: without it consumers no longer drop late events.",
    )
    AGGREGATE_VERSION_CHANGED = (
        "aggregate_version changed",
        "Keep the counter: consumers compare it with the last one. Add another event.",
    )
    EVENT_VERSION_LOWERED = ("event version lowered", "Use a version that no earlier release had.")
    EVENT_VERSION_RAISED = (
        "event version raised",
        "Review every consumer: the meaning of the event has changed.",
    )
    EVENT_VERSION_NOT_RAISED = (
        "event version not raised by a breaking change",
        "Undo the breaking change, or raise `version` of the event.",
    )
    EVENT_ACCESS_TIGHTENED = (
        "event access tightened",
        "Add an event with the narrower access, and publish both.",
    )
    EVENT_ACCESS_LOOSENED = (
        "event access loosened, check security",
        "Check that the additional clients may see every field of the event.",
    )
    RECIPIENT_CHANGED = (
        "event recipient changed",
        "Keep the recipient, and add an event for the other user.",
    )
    ENDED_SESSIONS_REMOVED = (
        "ended_sessions removed",
        "Keep the option: without it ended sessions stay valid until their tokens expire.",
    )
    ENDED_SESSIONS_CHANGED = (
        "ended_sessions changed",
        "Keep the field: processes of the old release read the ids from it.",
    )
    ENDED_SESSIONS_ADDED = (
        "ended_sessions added, check security",
        "Check that every gateway and worker is updated before sessions must end by this event.",
    )

    GENERATED_CODE = (
        "",
        "Keep the old element and add the new one beside it, or add a package of the next version.",
    )
    """A finding of buf, with the text of buf."""

    def __init__(self, text: str, advice: str) -> None:
        self.text = text
        self.advice = advice
