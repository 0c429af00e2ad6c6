//! What a subscriber listens to: channels of one school, and a filter over them.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use crate::event::Event;
use crate::id::{Channel, Kind, SchoolId, SubjectId};

/// Selects events by category (a job's type) and status. An empty set selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only these categories.
    pub categories: BTreeSet<String>,
    /// Only these statuses, in lower case.
    pub statuses: BTreeSet<String>,
}

impl Filter {
    /// Whether the filter selects everything.
    pub fn is_empty(&self) -> bool {
        self.categories.is_empty() && self.statuses.is_empty()
    }

    /// Whether the filter selects an event. A filter without categories selects every wide event, regardless of its
    /// subject's status, because wide events (see [`EventType`](crate::event::EventType)) concern every listener of their
    /// kind.
    pub fn matches(&self, event: &Event) -> bool {
        let draft = &event.draft;
        let is_wide = draft.event_type.wide && self.categories.is_empty();
        is_wide || self.passes(draft.status, draft.category.as_deref())
    }

    /// Whether the filter selects a subject with this status and category.
    pub fn passes(&self, status: &str, category: Option<&str>) -> bool {
        let category_passes =
            || category.is_some_and(|category| self.categories.contains(category));
        (self.statuses.is_empty() || self.statuses.contains(status))
            && (self.categories.is_empty() || category_passes())
    }
}

/// A set of channels of one school, and a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The school.
    pub school: SchoolId,
    /// The channels, without duplicates. An event on several of them is delivered once.
    channels: Vec<Channel>,
    /// The kind whose wide events are included, regardless of the channels.
    wide: Option<Kind>,
    /// Selects events of the channels.
    pub filter: Filter,
    /// Whether a snapshot omits subjects that have ended.
    pub active_only: bool,
}

impl Scope {
    /// Creates a scope of all events of `channels`.
    pub fn new(school: SchoolId, channels: impl IntoIterator<Item = Channel>) -> Scope {
        let mut scope = Scope {
            school,
            channels: Vec::new(),
            wide: None,
            filter: Filter::default(),
            active_only: false,
        };
        channels.into_iter().for_each(|channel| scope.add(channel));
        scope
    }

    /// Returns the scope with a filter.
    pub fn filtered(self, filter: Filter) -> Scope {
        Scope { filter, ..self }
    }

    /// Returns the scope with snapshots that contain only active subjects. The live events of subjects that end later
    /// are still included.
    pub fn with_active_only(self) -> Scope {
        Scope {
            active_only: true,
            ..self
        }
    }

    /// Adds the wide events of a kind, regardless of the channels.
    pub fn with_wide(self, kind: Kind) -> Scope {
        Scope {
            wide: Some(kind),
            ..self
        }
    }

    /// Removes the wide events that are on none of the channels.
    pub fn without_wide(self) -> Scope {
        Scope { wide: None, ..self }
    }

    /// Returns a scope of other channels with the same filter.
    pub fn with_channels(&self, channels: Vec<Channel>) -> Scope {
        Scope {
            active_only: self.active_only,
            wide: self.wide,
            ..Scope::new(self.school, channels).filtered(self.filter.clone())
        }
    }

    /// Returns the kind whose wide events are included, regardless of the channels.
    pub fn wide(&self) -> Option<Kind> {
        self.wide
    }

    /// Whether the scope includes no events.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty() && self.wide.is_none()
    }

    /// Returns the channels.
    pub fn channels(&self) -> &[Channel] {
        &self.channels
    }

    /// Adds a channel.
    pub fn add(&mut self, channel: Channel) {
        if !self.channels.contains(&channel) {
            // Most connections have one channel, and there are many connections.
            self.channels.reserve_exact(1);
            self.channels.push(channel);
        }
    }

    /// Removes a channel.
    pub fn remove(&mut self, channel: &Channel) {
        self.channels.retain(|included| included != channel);
    }

    /// Whether the scope includes the event.
    pub fn matches(&self, event: &Event) -> bool {
        let hears_wide = || {
            event.draft.event_type.wide
                && self.wide == Some(event.kind)
                && self.school == event.school
                && self.filter.matches(event)
        };
        self.matches_a_channel(event) || hears_wide()
    }

    /// Whether one of the channels includes the event.
    pub fn matches_a_channel(&self, event: &Event) -> bool {
        self.school == event.school
            && self.filter.matches(event)
            && self.channels.iter().any(|channel| match channel {
                Channel::School(school) => *school == self.school,
                Channel::Collection(kind) => *kind == event.kind,
                Channel::Subject(kind, id) => {
                    *kind == event.kind && (*id == event.subject || event.draft.event_type.wide)
                }
            })
    }

    /// Whether a channel includes every subject of `kind`.
    pub fn listens_to_all(&self, kind: Kind) -> bool {
        self.channels.iter().any(|channel| match channel {
            Channel::School(school) => *school == self.school,
            Channel::Collection(collection) => *collection == kind,
            Channel::Subject(..) => false,
        })
    }

    /// Returns the subjects of `kind` that have their own channels.
    pub fn subjects(&self, kind: Kind) -> Vec<&SubjectId> {
        let of_kind = |channel| match channel {
            &Channel::Subject(subject_kind, ref id) if subject_kind == kind => Some(id),
            _ => None,
        };
        self.channels.iter().filter_map(of_kind).collect()
    }
}

/// Returns the events without ticks that a later event of the same subject supersedes. `events` are in order.
pub fn without_superseded(mut events: Vec<Arc<Event>>) -> Vec<Arc<Event>> {
    let mut later: HashSet<(Kind, SubjectId)> = HashSet::with_capacity(events.len());
    events.reverse();
    events.retain(|event| {
        let address = (event.kind, event.subject.clone());
        let superseded = later.contains(&address);
        if event.draft.event_type.supersedes {
            later.insert(address);
        }
        !(superseded && event.is_tick())
    });
    events.reverse();
    events
}
