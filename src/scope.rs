//! What a subscriber listens to: channels of one school, and a filter over them.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use crate::event::Event;
use crate::id::{Channel, Kind, SchoolId, SubjectId};

/// Lets through events by category (a job's type) and status. An empty set lets everything through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only these categories.
    pub categories: BTreeSet<String>,
    /// Only these statuses, lower case.
    pub statuses: BTreeSet<String>,
}

impl Filter {
    /// Whether it lets everything through.
    pub fn is_empty(&self) -> bool {
        self.categories.is_empty() && self.statuses.is_empty()
    }

    /// Whether an event passes. A wide one is everyone's concern who listens to its kind, whatever the status of the
    /// subject that it comes from.
    pub fn lets_through(&self, event: &Event) -> bool {
        let draft = &event.draft;
        let is_wide = draft.event_type.wide && self.categories.is_empty();
        is_wide || self.passes(draft.status, draft.category.as_deref())
    }

    /// Whether a subject of this status and category passes.
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
    /// Whose.
    pub school: SchoolId,
    /// Which, each once; an event on several of them is heard once.
    channels: Vec<Channel>,
    /// Whose wide events are heard, whatever the channels are.
    wide: Option<Kind>,
    /// What of them.
    pub filter: Filter,
    /// Whether a snapshot leaves out subjects that have ended.
    pub active_only: bool,
}

impl Scope {
    /// All of `channels`.
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

    /// The same through a filter.
    pub fn filtered(self, filter: Filter) -> Scope {
        Scope { filter, ..self }
    }

    /// The same, but a snapshot tells only what goes on. What ends later is heard all the same.
    pub fn of_what_goes_on(self) -> Scope {
        Scope {
            active_only: true,
            ..self
        }
    }

    /// The same, and the wide events of a kind in addition.
    pub fn with_wide(self, kind: Kind) -> Scope {
        Scope {
            wide: Some(kind),
            ..self
        }
    }

    /// The same without wide events that are on none of its channels.
    pub fn without_wide(self) -> Scope {
        Scope { wide: None, ..self }
    }

    /// The same filter over other channels.
    pub fn with_channels(&self, channels: Vec<Channel>) -> Scope {
        Scope {
            active_only: self.active_only,
            wide: self.wide,
            ..Scope::new(self.school, channels).filtered(self.filter.clone())
        }
    }

    /// The kind whose wide events are heard, whatever the channels are.
    pub fn wide(&self) -> Option<Kind> {
        self.wide
    }

    /// Whether nothing is heard.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty() && self.wide.is_none()
    }

    /// The channels.
    pub fn channels(&self) -> &[Channel] {
        &self.channels
    }

    /// Listens to one more.
    pub fn add(&mut self, channel: Channel) {
        if !self.channels.contains(&channel) {
            // Most connections have one channel, and there are many connections.
            self.channels.reserve_exact(1);
            self.channels.push(channel);
        }
    }

    /// Listens to one less.
    pub fn remove(&mut self, channel: &Channel) {
        self.channels.retain(|own| own != channel);
    }

    /// Whether the event is heard.
    pub fn hears(&self, event: &Event) -> bool {
        let hears_wide = || {
            event.draft.event_type.wide
                && self.wide == Some(event.kind)
                && self.school == event.school
                && self.filter.lets_through(event)
        };
        self.hears_on_a_channel(event) || hears_wide()
    }

    /// Whether the event is heard because of a channel.
    pub fn hears_on_a_channel(&self, event: &Event) -> bool {
        self.school == event.school
            && self.filter.lets_through(event)
            && self.channels.iter().any(|channel| match channel {
                Channel::School(school) => *school == self.school,
                Channel::Collection(kind) => *kind == event.kind,
                Channel::Subject(kind, id) => {
                    *kind == event.kind && (*id == event.subject || event.draft.event_type.wide)
                }
            })
    }

    /// Whether every subject of `kind` is listened to.
    pub fn listens_to_all(&self, kind: Kind) -> bool {
        self.channels.iter().any(|channel| match channel {
            Channel::School(school) => *school == self.school,
            Channel::Collection(collection) => *collection == kind,
            Channel::Subject(..) => false,
        })
    }

    /// The single subjects of `kind` that are listened to.
    pub fn subjects(&self, kind: Kind) -> Vec<&SubjectId> {
        let of_kind = |channel| match channel {
            &Channel::Subject(own, ref id) if own == kind => Some(id),
            _ => None,
        };
        self.channels.iter().filter_map(of_kind).collect()
    }
}

/// Leaves out ticks that a later event of the same subject in the list supersedes. `events` are in order.
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
