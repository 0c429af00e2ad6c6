//! Cursors, channels and ids: a value that parses is written in a form that parses to the same value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidings::id::{Cursor, SchoolId, SubjectId};
use tidings::kind;
use tidings_fuzz::bounds::check_parser;

fuzz_target!(|text: &str| check_parser(text.len(), || {
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string().parse::<Cursor>().ok(), Some(cursor));
    }
    if let Ok(school) = text.parse::<SchoolId>() {
        assert_eq!(school.to_string().parse::<SchoolId>().ok(), Some(school));
        assert_eq!(school.get().to_string(), text.trim_start_matches('0'));
    }
    if let Ok(subject) = text.parse::<SubjectId>() {
        assert_eq!(subject.as_str(), text);
    }
    if let Ok(channel) = kind::channel(text) {
        let name = channel.to_string();
        assert_eq!(kind::channel(&name).ok().as_ref(), Some(&channel), "{name}");
        assert!(channel.covers(&channel));
    }
}));
