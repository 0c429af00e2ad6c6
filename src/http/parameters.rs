//! The query parameters: their names, values and meaning. Queries are checked and described with the same lists.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use crate::config::{
    EVENT_LIMIT_MIN_BYTES, FILTER_VALUES_MAX, PADDING_MAX_BYTES, PAGE_DEFAULT, PAGE_MAX,
    POLL_WAIT_DEFAULT_SECS, POLL_WAIT_MAX_SECS, QUERY_TEXT_MAX_BYTES, TICK_MAX_MS,
};
use crate::id::{SchoolId, SubjectId};
use crate::kind;
use crate::kind::job::JobType;

/// A query parameter.
pub(super) struct Parameter {
    pub(super) name: &'static str,
    /// Whether it may be given several times.
    pub(super) is_repeatable: bool,
    /// Whether a request needs it.
    pub(super) is_required: bool,
    /// Its meaning.
    pub(super) about: &'static str,
    /// The schema of its value.
    pub(super) values: Values,
}

/// The values of a parameter.
pub(super) enum Values {
    /// One of these.
    OneOf(&'static [&'static str]),
    /// An integer from the first to the second, with a default.
    Whole(u64, u64, Option<u64>),
    /// A text of at most this many bytes, with an example.
    Text(usize, &'static str),
    /// A text of this form, with an example.
    Pattern(&'static str, &'static str),
    /// The text of a value of this type.
    Of(fn(&mut SchemaGenerator) -> Schema),
    /// The text of a value of this type, with an example.
    Like(fn(&mut SchemaGenerator) -> Schema, &'static str),
    /// A status of the subjects that the request is about.
    Statuses,
}

impl Values {
    /// Returns the schema of one value. `statuses` are those of the subjects that the request is about.
    pub(super) fn schema(&self, statuses: &[&str]) -> Value {
        match self {
            Values::OneOf(names) => json!({ "type": "string", "enum": names }),
            Values::Whole(least, max, usual) => {
                let mut schema = json!({ "type": "integer", "minimum": least, "maximum": max });
                if let Some(usual) = usual {
                    schema["default"] = json!(usual);
                }
                schema
            }
            Values::Text(max_length, example) => {
                json!({ "type": "string", "maxLength": max_length, "examples": [example] })
            }
            Values::Pattern(pattern, example) => {
                json!({ "type": "string", "pattern": pattern, "examples": [example] })
            }
            Values::Of(schema) => schema(&mut SchemaGenerator::default()).to_value(),
            Values::Like(schema, example) => {
                let mut schema = schema(&mut SchemaGenerator::default()).to_value();
                schema["examples"] = json!([example]);
                schema
            }
            Values::Statuses => json!({ "type": "string", "enum": statuses }),
        }
    }
}

const fn parameter(name: &'static str, about: &'static str, values: Values) -> Parameter {
    Parameter {
        name,
        is_repeatable: false,
        is_required: false,
        about,
        values,
    }
}

const fn repeatable(name: &'static str, about: &'static str, values: Values) -> Parameter {
    Parameter {
        is_repeatable: true,
        ..parameter(name, about, values)
    }
}

/// The maximum length of a foreign cursor in the description, in bytes. It is not enforced.
const NAME_MAX_BYTES: usize = 128;
/// The maximum length of a list of names or of a token in the description, in bytes. It is not enforced.
const NAMES_MAX_BYTES: usize = 1_024;
/// A cursor: epoch, seq and tag; and seq and tag of the event that the client awaits.
const CURSOR_PATTERN: &str =
    r"^([0-9a-f]{8}-[0-9]{1,18}(-[0-9a-f]{8})?(\.[0-9]{1,18}(\.[0-9a-f]{8})?)?)?$";
/// The cursor of the examples.
pub(super) const EXAMPLE_CURSOR: &str = "5f3a9c1e-1284-64551b6b";
/// Ids without commas, separated by commas.
const IDS_PATTERN: &str = r"^[^,.\x00-\x1f\x7f-\x9f]{1,32}(,[^,.\x00-\x1f\x7f-\x9f]{1,32}){0,20}$";
/// A position in a list, and the place in the log at which its first page was read.
const PAGE_PATTERN: &str = "^[0-9]{1,18}(-[0-9]{1,18}(-[0-9a-f]{8})?)?$";

/// The last second of the year 9999.
pub(super) const EXPIRES_MAX: u64 = 253_402_300_799;

/// `school_id`, with a token for several schools.
pub(super) const SCHOOL_ID: Parameter = parameter(
    "school_id",
    "The school, if the token covers several.",
    Values::Of(SchoolId::json_schema),
);

/// `status_case`.
pub(super) const STATUS_CASE: Parameter = parameter(
    "status_case",
    "The letter case of a job's status. The default is a setting.",
    Values::OneOf(&["lower", "upper"]),
);

/// `token`. In documents, it is a security scheme.
const TOKEN: Parameter = parameter(
    "token",
    "The token, for clients that cannot send a header.",
    Values::Text(NAMES_MAX_BYTES, "eyJ…"),
);

/// Parameters that every list accepts.
pub(super) const COMMON: &[Parameter] = &[SCHOOL_ID, TOKEN, STATUS_CASE];

const STATUS: Parameter = repeatable(
    "status",
    "Only subjects with one of these statuses. On a stream: in snapshots, replays and live events.",
    Values::Statuses,
);

const JOB_TYPE: Parameter = repeatable(
    "job_type",
    "Only jobs of one of these types. Subjects without a type, such as devices, are excluded.",
    Values::Like(JobType::json_schema, "document"),
);

const LIMIT: Parameter = parameter(
    "limit",
    "The maximum number of items in a page.",
    Values::Whole(1, PAGE_MAX as u64, Some(PAGE_DEFAULT as u64)),
);

const PAGE: Parameter = parameter(
    "page",
    "The `next` of the previous page.",
    Values::Pattern(PAGE_PATTERN, "1200345-2000000-57ee08cc"),
);

/// The parameters of a list of subjects.
pub(super) const LIST: &[Parameter] = &[
    STATUS,
    JOB_TYPE,
    parameter(
        "q",
        "Only subjects that contain this text.",
        Values::Text(QUERY_TEXT_MAX_BYTES, "report"),
    ),
    parameter(
        "stalled",
        "`true`: only stalled jobs.",
        Values::OneOf(&["true", "false"]),
    ),
    parameter(
        "sort",
        "The order, by creation.",
        Values::OneOf(&["newest", "oldest"]),
    ),
    PAGE,
    LIMIT,
];

/// The parameters of a list that only has pages.
pub(super) const PAGES: &[Parameter] = &[PAGE, LIMIT];

/// The parameters of the list of violations.
pub(super) const VIOLATIONS: &[Parameter] = &[
    parameter(
        "characteristic_id",
        "Only violations of this characteristic.",
        Values::Like(SubjectId::json_schema, "bolt-diameter"),
    ),
    parameter(
        "acknowledged",
        "Only violations that are acknowledged, or only those that are not.",
        Values::OneOf(&["true", "false"]),
    ),
    PAGE,
    LIMIT,
];

/// The parameters of a stream. `stream/params.rs` reads them.
pub(super) const STREAM: &[Parameter] = &[
    parameter(
        "cursor",
        "Resume from here instead of from a snapshot. An empty value counts as absent.",
        Values::Pattern(CURSOR_PATTERN, EXAMPLE_CURSOR),
    ),
    parameter(
        "lastEventId",
        "A cursor, as polyfills of `EventSource` send it in place of a `Last-Event-ID` header. The header takes precedence over it; it takes precedence over `last-event-id` and `cursor`.",
        Values::Text(NAME_MAX_BYTES, EXAMPLE_CURSOR),
    ),
    parameter(
        "last-event-id",
        "The same as `lastEventId`, under another name.",
        Values::Text(NAME_MAX_BYTES, EXAMPLE_CURSOR),
    ),
    STATUS,
    JOB_TYPE,
    SCHOOL_ID,
    STATUS_CASE,
    parameter(
        "shape",
        "The shape of a characteristic's messages. The default is `enveloped`, except on `/ws/samples`.",
        Values::OneOf(&["enveloped", "flat"]),
    ),
    parameter(
        "tick_ms",
        "The minimum number of milliseconds between two ticks of one subject. The default is a setting; 0 delivers every retained tick.",
        Values::Whole(0, TICK_MAX_MS, None),
    ),
    parameter(
        "id_type",
        "`number`: an id that is the plain decimal form of an integer (no sign, no leading zero, below 2^53) is a JSON number; `string`: every id is a string. The default is `number` on `/ws/device-status` and `/ws/samples`, and `string` everywhere else.",
        Values::OneOf(&["number", "string"]),
    ),
    parameter(
        "heartbeat",
        "`message`: a WebSocket receives a `heartbeat` message in addition to each ping frame. No effect on the other transports.",
        Values::OneOf(&["ping", "message"]),
    ),
    parameter(
        "max_event_bytes",
        "An event whose JSON is larger has `truncated`, and comes without its `result` (`null`) and the `details` of its `error`; if it is still too large, also without `metadata` and `info` (`{}`). `GET /api/…` returns all of it.",
        Values::Whole(EVENT_LIMIT_MIN_BYTES as u64, u32::MAX as u64, None),
    ),
    parameter(
        "named",
        "`1`: SSE events are named after the message's `type`.",
        Values::OneOf(&["0", "1"]),
    ),
    parameter(
        "padding",
        "The number of bytes of SSE comment at the start of the first block, for proxies that hold back the first kilobytes.",
        Values::Whole(0, PADDING_MAX_BYTES as u64, Some(0)),
    ),
    parameter(
        "wait",
        "How many seconds a long poll waits for a message. No effect on the other transports.",
        Values::Whole(0, POLL_WAIT_MAX_SECS, Some(POLL_WAIT_DEFAULT_SECS)),
    ),
];

/// `channel`, of `/events`.
pub(super) const CHANNEL: Parameter = Parameter {
    is_required: true,
    ..repeatable(
        "channel",
        "A channel: the end of its URL.",
        Values::Of(kind::ChannelText::json_schema),
    )
};

/// `ids`, of a collection's stream.
pub(super) const IDS: Parameter = parameter(
    "ids",
    "Only these subjects of the collection, separated by commas; it can be given several times. Each must exist. To select an id that contains a comma, use `channel`.",
    Values::Pattern(IDS_PATTERN, "1,2,3"),
);

/// `stream`, of a batch.
pub(super) const STREAMED: Parameter = parameter(
    "stream",
    "`1`: each line is answered while the request is still being sent.",
    Values::OneOf(&["0", "1"]),
);

/// The parameters of a ping.
pub(super) const PING: &[Parameter] = &[parameter(
    "rid",
    "The name of the run, which tells overlapping runs apart.",
    Values::Pattern("^[A-Za-z0-9._:~-]{1,48}$", "20261127-1"),
)];

/// The signature of a link of the examples.
pub(super) const EXAMPLE_SIGNATURE: &str = "YW4gZXhhbXBsZSBvZiB0aGlydHktdHdvIGJ5dGVzLi4";

/// What a signed link consists of, in addition to its path.
pub(super) const LINK: &[Parameter] = &[
    Parameter {
        is_required: true,
        ..parameter(
            "school_id",
            "The school of the link.",
            Values::Of(SchoolId::json_schema),
        )
    },
    parameter(
        "expires",
        "When the link expires, in seconds since 1970. Absent: never.",
        Values::Whole(0, EXPIRES_MAX, None),
    ),
    Parameter {
        is_required: true,
        ..parameter(
            "signature",
            "The signature, which covers the path and the other two.",
            Values::Pattern("^[A-Za-z0-9_-]{43}$", EXAMPLE_SIGNATURE),
        )
    },
];

/// The parameters of an embedded list of jobs, in addition to those of its link.
#[cfg(feature = "monitor")]
pub(super) const EMBEDDED: &[Parameter] = &[
    parameter(
        "job_type",
        "Only jobs of these types, separated by commas.",
        Values::Text(NAMES_MAX_BYTES, "import,export"),
    ),
    parameter(
        "status",
        "Only jobs with these statuses, separated by commas.",
        Values::Text(NAMES_MAX_BYTES, "in_progress,failed"),
    ),
    parameter(
        "limit",
        "The maximum number of jobs to show.",
        Values::Text(NAMES_MAX_BYTES, "10"),
    ),
];

/// `session_id`, of `/ws/enrollment`.
pub(super) const SESSION_ID: Parameter = parameter(
    "session_id",
    "Only this session.",
    Values::Like(SubjectId::json_schema, "42"),
);

/// How many values a repeatable filter accepts.
pub(super) const REPETITIONS_MAX: usize = FILTER_VALUES_MAX;
