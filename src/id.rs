//! Names: schools, kinds, subjects, channels and cursors.
//!
//! Texts are parsed once, where they enter the server. A value of one of these types is always valid. A [`SubjectId`] can
//! appear verbatim in a log line or a message, and percent-encoded ([`SubjectId::encoded`]) in a URL path, a channel
//! name and a topic level.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use icu_properties::CodePointSetData;
use icu_properties::props::{DefaultIgnorableCodePoint, WhiteSpace};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The characters of an id that are percent-encoded: all except those that RFC 3986 does not reserve, and the colon,
/// which a path may contain.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b':');

/// Maximum length of a subject id, in bytes.
pub const SUBJECT_ID_MAX_BYTES: usize = 128;

/// A text that is not a valid name. The message is safe to show to a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A school id that is not a positive integer.
    #[error("a school id must be a positive integer")]
    School,
    /// A subject id that is empty, too long or has control characters.
    #[error(
        "an id must be a text of 1 to 128 bytes without control characters, and must not be `.` or `..`"
    )]
    Subject,
    /// A channel that is not `<kind>`, `<kind>/<id>` or `schools/<school id>`.
    #[error("a channel must be `<kind>`, `<kind>/<id>` or `schools/<school id>`; kinds: {0}")]
    Channel(String),
    /// A channel whose id is not encoded correctly.
    #[error("in a channel, write `/` and `%` of an id as %2F and %25, as in `jobs/a%2Fb`")]
    Encoding,
    /// A cursor that this server cannot have issued.
    #[error("a cursor must have the form `<epoch>-<seq>-<tag>` and come from an earlier message")]
    Cursor,
}

/// Whether a name has a visible character: anything except blanks, control characters and characters without a glyph.
pub fn is_visible(name: &str) -> bool {
    let blank = CodePointSetData::new::<WhiteSpace>();
    let ignorable = CodePointSetData::new::<DefaultIgnorableCodePoint>();
    let is_empty = |character: char| {
        character.is_control()
            || blank.contains(character)
            || ignorable.contains(character)
            // Formatting that is not ignorable: marks of interlinear annotation, and the Braille pattern without dots.
            || matches!(character, '\u{fff9}'..='\u{fffb}' | '\u{2800}')
    };
    !name.chars().all(is_empty)
}

/// The tenant: the unit of isolation and of ordering. Always 1 or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct SchoolId(i64);

impl SchoolId {
    /// Returns the number, as in messages and in the database.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl TryFrom<i64> for SchoolId {
    type Error = NameError;

    fn try_from(number: i64) -> Result<Self, NameError> {
        if number >= 1 {
            Ok(SchoolId(number))
        } else {
            Err(NameError::School)
        }
    }
}

impl From<SchoolId> for i64 {
    fn from(school: SchoolId) -> i64 {
        school.0
    }
}

impl FromStr for SchoolId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        // `i64::from_str` would accept a leading `+`, so that one school would have two spellings.
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NameError::School);
        }
        text.parse::<i64>()
            .map_err(|_| NameError::School)?
            .try_into()
    }
}

impl fmt::Display for SchoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for SchoolId {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "SchoolId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "format": "int64", "minimum": 1, "maximum": i64::MAX })
    }
}

/// A kind of subject, named by its collection in URLs and channels (`jobs`).
///
/// The module [`crate::kind`] defines which kinds exist. This module only holds the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(&'static str);

impl Kind {
    pub(crate) const fn new(collection: &'static str) -> Kind {
        Kind(collection)
    }

    /// Returns the collection's name, for example `jobs`.
    pub fn collection(self) -> &'static str {
        self.0
    }
}

/// The id of a subject, unique within its school and kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct SubjectId(Arc<str>);

impl SubjectId {
    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the id as a segment of a URL path or of a channel name.
    pub fn encoded(&self) -> impl fmt::Display {
        utf8_percent_encode(&self.0, ENCODED)
    }

    /// Returns a new id. Ids sort by their creation time (UUIDv7).
    pub fn generate() -> SubjectId {
        SubjectId(uuid::Uuid::now_v7().to_string().into())
    }
}

impl JsonSchema for SubjectId {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "SubjectId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 1,
            "maxLength": SUBJECT_ID_MAX_BYTES,
            "pattern": r"^[^\x00-\x1f\x7f-\x9f]+$",
            "not": { "enum": [".", ".."] },
        })
    }
}

impl FromStr for SubjectId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = (1..=SUBJECT_ID_MAX_BYTES).contains(&text.len());
        // Clients resolve the segments `.` and `..` as relative paths, even if they are percent-encoded.
        let is_a_step = text == "." || text == "..";
        if fits && !text.chars().any(char::is_control) && !is_a_step {
            Ok(SubjectId(text.into()))
        } else {
            Err(NameError::Subject)
        }
    }
}

impl TryFrom<String> for SubjectId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl Borrow<str> for SubjectId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SubjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a subscriber listens to inside a school. Its text is the end of its URL, `/events/<channel>`, where an id is
/// percent-encoded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    /// All events of a school.
    School(SchoolId),
    /// Every subject of a kind.
    Collection(Kind),
    /// One subject.
    Subject(Kind, SubjectId),
}

impl Channel {
    /// Parses a channel's text, given the kinds that exist.
    pub fn parse(text: &str, kinds: &[Kind]) -> Result<Channel, NameError> {
        let unknown = || {
            let names: Vec<_> = kinds.iter().map(|kind| kind.collection()).collect();
            NameError::Channel(names.join(", "))
        };
        let (collection, id) = match text.split_once('/') {
            Some((collection, id)) => (collection, Some(id)),
            None => (text, None),
        };
        if collection == "schools" {
            return Ok(Channel::School(id.ok_or_else(unknown)?.parse()?));
        }
        let kind = *kinds
            .iter()
            .find(|kind| kind.collection() == collection)
            .ok_or_else(unknown)?;
        match id {
            Some(id) => Ok(Channel::Subject(kind, decoded(id)?.parse()?)),
            None => Ok(Channel::Collection(kind)),
        }
    }

    /// Returns the channel's text as a value in a query. Parsing the query decodes it once, and the id's own encoding
    /// must remain.
    pub fn in_query(&self) -> String {
        self.to_string().replace('%', "%25")
    }

    /// Whether every event of `other` is also an event of this channel. The `channels` of a token are checked with this
    /// function, and not by matching patterns, which a crafted id could circumvent.
    pub fn covers(&self, other: &Channel) -> bool {
        match (self, other) {
            (Channel::School(mine), Channel::School(theirs)) => mine == theirs,
            (Channel::School(_), _) => true,
            (
                Channel::Collection(mine),
                Channel::Collection(theirs) | Channel::Subject(theirs, _),
            ) => mine == theirs,
            (Channel::Subject(..), Channel::Subject(..)) => self == other,
            _ => false,
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Channel::School(school) => write!(f, "schools/{school}"),
            Channel::Collection(kind) => f.write_str(kind.collection()),
            Channel::Subject(kind, id) => write!(f, "{}/{}", kind.collection(), id.encoded()),
        }
    }
}

/// Decodes the id in a channel's text. `/` and `%` must be encoded, and any other character may be.
fn decoded(text: &str) -> Result<Cow<'_, str>, NameError> {
    let is_escape = |rest: &str| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if text.contains('/') || !text.split('%').skip(1).all(is_escape) {
        return Err(NameError::Encoding);
    }
    percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| NameError::Encoding)
}

/// Identifies one history of a database. A cursor with a different epoch is answered with a `reset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(u32);

impl Epoch {
    /// Returns a new random epoch, for a new database.
    pub fn generate() -> Epoch {
        let random = getrandom::u32().expect("the operating system provides random numbers");
        // No database has epoch 0: see [`Cursor::FOREIGN`].
        Epoch(random.max(1))
    }
}

impl FromStr for Epoch {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        hex(text).map(Epoch)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Distinguishes an event from others that could have the same number: a 32-bit hash of its content and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(u32);

impl Tag {
    /// Returns the tag with these bits.
    pub(crate) const fn new(bits: u32) -> Tag {
        Tag(bits)
    }

    /// Returns the bits, as the database stores them.
    pub(crate) fn get(self) -> u32 {
        self.0
    }
}

/// A place in a school's log: that of an event, or 0 before the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Place {
    /// The number of the event.
    pub seq: u64,
    /// Identifies the event among all that have had this number. `None` if it is unknown, and for the place before the
    /// first event.
    pub tag: Option<Tag>,
}

impl Place {
    /// Returns a place of which only the number is known.
    pub const fn untagged(seq: u64) -> Place {
        Place { seq, tag: None }
    }

    /// Parses the number and, after `separator`, the tag.
    fn parse(text: &str, separator: char) -> Result<Place, NameError> {
        let (seq, tag) = match text.split_once(separator) {
            Some((seq, tag)) => (seq, Some(hex(tag)?)),
            None => (text, None),
        };
        if seq.is_empty() || !seq.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NameError::Cursor);
        }
        let seq = seq.parse().map_err(|_| NameError::Cursor)?;
        // Sequence numbers are stored as signed 64-bit integers.
        if seq > i64::MAX as u64 {
            return Err(NameError::Cursor);
        }
        Ok(Place {
            seq,
            tag: tag.map(Tag),
        })
    }

    /// Writes the number and, after `separator`, the tag.
    fn write(&self, f: &mut fmt::Formatter<'_>, separator: char) -> fmt::Result {
        match self.tag {
            Some(Tag(tag)) => write!(f, "{}{separator}{tag:08x}", self.seq),
            None => write!(f, "{}", self.seq),
        }
    }
}

impl FromStr for Place {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Place::parse(text, '-')
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, '-')
    }
}

/// A client's position: it has seen everything up to and including `place`.
///
/// Its text is `<epoch>-<seq>-<tag>`. The tag identifies the event itself: if a history is lost and its numbers are
/// assigned again, a cursor from it is recognised. Cursors from older versions of the server have no tag. If the client
/// awaits an event, its place follows: `<epoch>-<seq>-<tag>.<seq>.<tag>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The epoch of the place.
    pub epoch: Epoch,
    /// The last event seen.
    pub place: Place,
    /// A snapshot does not contain the earlier states of subjects whose last event lies further on in it, or follows it. Until the
    /// client has received these events: the newest one when the snapshot was read. If the log has lost it, the client lacks states.
    pub awaits: Option<Place>,
}

impl Cursor {
    /// A place in a foreign log: no database has its epoch, so it is answered with a `reset`.
    pub const FOREIGN: Cursor = Cursor {
        epoch: Epoch(0),
        place: Place::untagged(0),
        awaits: None,
    };

    /// Returns the cursor of a client that has seen everything up to this place and awaits nothing.
    pub const fn new(epoch: Epoch, place: Place) -> Cursor {
        Cursor {
            epoch,
            place,
            awaits: None,
        }
    }

    /// Returns a cursor without a tag.
    pub const fn untagged(epoch: Epoch, seq: u64) -> Cursor {
        Cursor::new(epoch, Place::untagged(seq))
    }
}

impl FromStr for Cursor {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (epoch, places) = text.split_once('-').ok_or(NameError::Cursor)?;
        let (place, awaits) = match places.split_once('.') {
            Some((place, awaits)) => (place, Some(Place::parse(awaits, '.')?)),
            None => (places, None),
        };
        Ok(Cursor {
            epoch: epoch.parse()?,
            place: place.parse()?,
            awaits,
        })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.place)?;
        match self.awaits {
            Some(awaits) => {
                f.write_str(".")?;
                awaits.write(f, '.')
            }
            None => Ok(()),
        }
    }
}

/// Parses eight hexadecimal digits in lower case: each number has only one spelling.
fn hex(text: &str) -> Result<u32, NameError> {
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != 8 || !text.bytes().all(lower_hex) {
        return Err(NameError::Cursor);
    }
    u32::from_str_radix(text, 16).map_err(|_| NameError::Cursor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOBS: Kind = Kind::new("jobs");
    const DEVICES: Kind = Kind::new("devices");

    fn channel(text: &str) -> Channel {
        Channel::parse(text, &[JOBS, DEVICES]).unwrap()
    }

    #[test]
    fn a_channel_covers_what_it_contains_and_nothing_else() {
        assert!(channel("schools/1").covers(&channel("jobs/42")));
        assert!(channel("jobs").covers(&channel("jobs/42")));
        assert!(channel("jobs/42").covers(&channel("jobs/42")));
        assert!(!channel("jobs/42").covers(&channel("jobs")));
        assert!(!channel("jobs/4").covers(&channel("jobs/42")));
        assert!(!channel("jobs").covers(&channel("devices/42")));
        assert!(!channel("schools/1").covers(&channel("schools/2")));
        assert!(!channel("jobs").covers(&channel("schools/1")));
    }

    #[test]
    fn an_id_is_any_text_without_control_characters() {
        let longest = "é".repeat(64);
        for text in [
            "a/b",
            "a b",
            "a%2fb",
            "...",
            "*",
            "é",
            " ",
            "100%.pdf",
            "Zeugnis 3.pdf",
            "作业",
            "?#&+;=",
            &longest,
        ] {
            let id: SubjectId = text.parse().unwrap();
            let channel = Channel::Subject(JOBS, id);
            assert_eq!(
                Channel::parse(&channel.to_string(), &[JOBS]),
                Ok(channel),
                "{text:?}"
            );
        }
        assert_eq!(
            channel("jobs/a b%2Fc%25").to_string(),
            "jobs/a%20b%2Fc%25",
            "characters that need no encoding may be unencoded"
        );
        assert_eq!(channel("jobs/a:1~x_y-z").to_string(), "jobs/a:1~x_y-z");
    }

    #[test]
    fn names_that_cannot_be_addressed_are_rejected() {
        for text in [
            "",
            "a\nb",
            "a\0",
            "\u{7f}",
            "\u{85}",
            ".",
            "..",
            &"x".repeat(129),
            &"é".repeat(65),
        ] {
            assert!(text.parse::<SubjectId>().is_err(), "{text:?}");
        }
        for text in ["0", "-1", "+1", "1.0", "", " 1", "99999999999999999999"] {
            assert!(text.parse::<SchoolId>().is_err(), "{text:?}");
        }
        for text in [
            "",
            "-",
            "1-1",
            "0000000g-1",
            "00000000-",
            "00000000--1",
            "00000000-+1",
            "00000000-1-",
            "00000000-1-1",
            "00000000-1-0000000G",
            "00000000-1-00000001-1",
            "00000000--00000001",
            "ABCDEF00-1",
            "00000000-1.",
            "00000000-1.2-00000003",
            "00000000-1.2.3",
            "00000000-1.2.00000003.4",
        ] {
            assert!(text.parse::<Cursor>().is_err(), "{text:?}");
        }
        for text in [
            "",
            "/",
            "jobs/",
            "*",
            "Jobs",
            "jobs/1/2",
            "jobs/100%",
            "jobs/%zz",
            "jobs/%+1",
            "jobs/%ff",
            "jobs/%00",
            "jobs/%2E%2E",
            "schools",
            "schools/x",
        ] {
            assert!(Channel::parse(text, &[JOBS]).is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_cursor_reads_back_as_written(epoch: u32, seq in 0..=i64::MAX as u64, tag: Option<u32>) {
            let place = Place { seq, tag: tag.map(Tag) };
            let mut cursor = Cursor::new(Epoch(epoch), place);
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
            cursor.awaits = Some(place);
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text: String) {
            let _ = text.parse::<Cursor>();
            let _ = text.parse::<SchoolId>();
            let _ = text.parse::<SubjectId>();
            let _ = Channel::parse(&text, &[JOBS]);
        }
    }
}
