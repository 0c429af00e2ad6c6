//! Who listens to which channels of a school.

use std::collections::HashMap;
use std::sync::Arc;

use indexmap::IndexMap;

use super::mailbox::Mailbox;
use crate::event::Event;
use crate::id::{Channel, Kind, SubjectId};

/// The listeners of one channel by the number of their mailbox. Iteration is over a dense array, and removal takes constant time.
pub(super) type Listeners = IndexMap<u64, Arc<Mailbox>>;

/// The listeners of a school by channel. Channels without listeners are removed.
#[derive(Default)]
pub(super) struct Topics {
    everything: Listeners,
    kinds: HashMap<Kind, Topic>,
}

#[derive(Default)]
struct Topic {
    all: Listeners,
    /// Listeners that receive only the wide events of the kind. A wide event is also delivered to `all`, and to the
    /// listeners of every subject of the kind.
    wide: Listeners,
    subjects: HashMap<SubjectId, Listeners>,
}

impl Topics {
    /// Returns the listeners of an event, by channel. At most three of these groups are empty.
    pub(super) fn of(&self, event: &Event) -> impl Iterator<Item = &Listeners> {
        let topic = self.kinds.get(&event.kind);
        let of_kind = topic.into_iter().flat_map(|topic| {
            let (wide, every, one) = match event.draft.event_type.wide {
                true => (Some(&topic.wide), Some(topic.subjects.values()), None),
                false => (None, None, topic.subjects.get(&event.subject)),
            };
            let of_subjects = wide.into_iter().chain(every.into_iter().flatten());
            [&topic.all].into_iter().chain(of_subjects).chain(one)
        });
        [&self.everything].into_iter().chain(of_kind)
    }

    pub(super) fn listen(&mut self, channel: &Channel, id: u64, mailbox: &Arc<Mailbox>) {
        let listeners = match channel {
            Channel::School(_) => &mut self.everything,
            Channel::Collection(kind) => &mut self.kinds.entry(*kind).or_default().all,
            Channel::Subject(kind, subject) => self
                .kinds
                .entry(*kind)
                .or_default()
                .subjects
                .entry(subject.clone())
                .or_default(),
        };
        listeners.insert(id, Arc::clone(mailbox));
    }

    pub(super) fn unlisten(&mut self, channel: &Channel, id: u64) {
        match channel {
            Channel::School(_) => drop(remove_and_shrink(&mut self.everything, id)),
            Channel::Collection(kind) | Channel::Subject(kind, _) => {
                let Some(topic) = self.kinds.get_mut(kind) else {
                    return;
                };
                if let Channel::Subject(_, subject) = channel {
                    if let Some(listeners) = topic.subjects.get_mut(subject) {
                        remove_and_shrink(listeners, id);
                        if listeners.is_empty() {
                            topic.subjects.remove(subject);
                        }
                    }
                } else {
                    remove_and_shrink(&mut topic.all, id);
                }
                self.remove_if_unused(*kind);
            }
        }
    }

    /// Adds a listener that receives only the wide events of a kind.
    pub(super) fn listen_to_wide(&mut self, kind: Kind, id: u64, mailbox: &Arc<Mailbox>) {
        let wide = &mut self.kinds.entry(kind).or_default().wide;
        wide.insert(id, Arc::clone(mailbox));
    }

    pub(super) fn unlisten_wide(&mut self, kind: Kind, id: u64) {
        if let Some(topic) = self.kinds.get_mut(&kind) {
            remove_and_shrink(&mut topic.wide, id);
            self.remove_if_unused(kind);
        }
    }

    /// Removes a kind without listeners.
    fn remove_if_unused(&mut self, kind: Kind) {
        let is_unused = |topic: &Topic| {
            topic.all.is_empty() && topic.wide.is_empty() && topic.subjects.is_empty()
        };
        if self.kinds.get(&kind).is_some_and(is_unused) {
            self.kinds.remove(&kind);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.everything.is_empty() && self.kinds.is_empty()
    }
}

/// Removes an entry, and releases memory if most of the map is unused.
pub(super) fn remove_and_shrink<T>(listeners: &mut IndexMap<u64, T>, id: u64) -> Option<T> {
    let gone = listeners.swap_remove(&id);
    if listeners.len() < listeners.capacity() / 4 {
        listeners.shrink_to(listeners.len() * 2);
    }
    gone
}
