//! Decides how often a subject's ticks are delivered: the `every` of a rule.
//!
//! Each tick is compared with the last delivered event of its subject. That event is kept only in memory, for the most recent
//! subjects. So after a restart, the first tick of a subject is always delivered. The times are those of the events, so that a
//! notifier that catches up makes the same decisions as without a delay.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use lru::LruCache;

use crate::config::NOTIFY_PACED_SUBJECTS_MAX;
use crate::config::notifiers::{Every, Rule};
use crate::event::Event;
use crate::id::{Kind, SchoolId, SubjectId};
use crate::kind::EventDetails;

/// The last delivered event of each subject.
pub(super) struct Pace(Mutex<LruCache<(SchoolId, Kind, SubjectId), LastDelivery>>);

#[derive(Clone, Copy)]
struct LastDelivery {
    at: DateTime<Utc>,
    progress: Option<f64>,
}

impl LastDelivery {
    fn of(event: &Event) -> LastDelivery {
        LastDelivery {
            at: event.at,
            progress: EventDetails::progress_of(&event.draft),
        }
    }
}

impl Default for Pace {
    fn default() -> Pace {
        let capacity = NonZeroUsize::new(NOTIFY_PACED_SUBJECTS_MAX).expect("there is room");
        Pace(Mutex::new(LruCache::new(capacity)))
    }
}

impl Pace {
    /// Whether at least one of the rules that select the event allows its delivery now.
    pub(super) fn lets(&self, rules: &[Rule], event: &Event) -> bool {
        if !event.is_tick() || rules.is_empty() {
            return true;
        }
        let name = (event.school, event.kind, event.subject.clone());
        let last = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.get(&name).copied()
        };
        let Some(last) = last else {
            return true;
        };
        let now = LastDelivery::of(event);
        let mut rules = rules.iter().filter(|rule| rule.matches(event));
        rules.any(|rule| match rule.every {
            Every::Milestone => true,
            Every::Percent(step) => {
                let place = |delivery: LastDelivery| {
                    delivery
                        .progress
                        .map(|progress| (progress / f64::from(step)).floor())
                };
                place(now) != place(last)
            }
            Every::Seconds(secs) => (now.at - last.at).num_seconds() >= i64::from(secs),
        })
    }

    /// Records what was delivered.
    pub(super) fn delivered(&self, rules: &[Rule], event: &Event) {
        if rules.iter().any(|rule| rule.every != Every::Milestone) {
            let name = (event.school, event.kind, event.subject.clone());
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.put(name, LastDelivery::of(event));
        }
    }
}
