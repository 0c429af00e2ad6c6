//! Which parts of a log are read to find the events of a scope.

use crate::id::{Channel, Kind};
use crate::kind::description;
use crate::scope::Scope;

/// A part of a school's log that an index returns in order.
pub(in crate::store) enum Source<'a> {
    Everything,
    Subject(Kind, &'a str),
    /// The wide events of the kind, which all subscribers to any of its subjects receive.
    Wide(Kind),
}

/// Returns the sources that contain the events of a scope. A scope that contains only single subjects reads each of them
/// by the index on subjects, however many events the rest of the school has.
pub(in crate::store) fn sources(scope: &Scope) -> Vec<Source<'_>> {
    let mut sources: Vec<_> = scope.wide().map(Source::Wide).into_iter().collect();
    for channel in scope.channels() {
        let &Channel::Subject(kind, ref id) = channel else {
            return vec![Source::Everything];
        };
        sources.push(Source::Subject(kind, id.as_str()));
        let has_wide = description(kind)
            .event_types
            .iter()
            .any(|event_type| event_type.wide);
        let is_there =
            |source: &Source<'_>| matches!(source, Source::Wide(other) if *other == kind);
        if has_wide && !sources.iter().any(is_there) {
            sources.push(Source::Wide(kind));
        }
    }
    sources
}
