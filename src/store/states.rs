//! Caches the most recently used states, so that the writer need not read before each write. Their number and total size
//! are limited.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::config::{STATE_BASE_BYTES, STATE_CACHE, STATE_CACHE_BYTES};
use crate::log::facts::{Address, Stored};

pub(in crate::store) struct States<T = Stored> {
    states: LruCache<Address, T>,
    bytes: usize,
    max_bytes: usize,
}

/// What is cached of a subject.
pub(in crate::store) trait Weighed {
    /// Returns how many bytes it counts for.
    fn bytes(&self) -> usize;
}

impl Weighed for Stored {
    fn bytes(&self) -> usize {
        STATE_BASE_BYTES + self.state.text_bytes()
    }
}

impl Default for States {
    fn default() -> States {
        States::new(STATE_CACHE_BYTES)
    }
}

impl<T: Weighed> States<T> {
    /// Creates a cache of at most `max_bytes`.
    pub(in crate::store) fn new(max_bytes: usize) -> States<T> {
        let room = NonZeroUsize::new(STATE_CACHE).expect("a cache has room");
        States {
            states: LruCache::new(room),
            bytes: 0,
            max_bytes,
        }
    }

    pub(in crate::store) fn contains(&self, address: &Address) -> bool {
        self.states.contains(address)
    }

    pub(in crate::store) fn get(&mut self, address: &Address) -> Option<&T> {
        self.states.get(address)
    }

    /// Returns a state without counting that as a use.
    pub(in crate::store) fn peek(&self, address: &Address) -> Option<&T> {
        self.states.peek(address)
    }

    /// Adds a state, and evicts others if necessary. The new state stays at least until the next call.
    pub(in crate::store) fn put(&mut self, address: Address, stored: T) {
        self.bytes += stored.bytes();
        let replaced = self.states.push(address, stored);
        self.bytes -= replaced.map_or(0, |(_, stored)| stored.bytes());
        while self.bytes > self.max_bytes && self.states.len() > 1 {
            let oldest = self.states.pop_lru();
            self.bytes -= oldest.map_or(0, |(_, stored)| stored.bytes());
        }
    }

    pub(in crate::store) fn pop(&mut self, address: &Address) {
        let popped = self.states.pop(address);
        self.bytes -= popped.map_or(0, |stored| stored.bytes());
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use serde_json::json;

    use super::*;
    use crate::config::Settings;
    use crate::id::Place;
    use crate::kind::{self, Command, Context, job};
    use crate::uptime::Uptime;

    fn job(id: &str, metadata: usize) -> (Address, Stored) {
        let create = json!({"job_type": "t", "metadata": {"text": "x".repeat(metadata)}});
        let create = serde_json::from_value(create).unwrap();
        let limits = Settings::default().limits();
        let context = Context {
            now: Utc::now(),
            limits: &limits,
            history: None,
            uptime: Uptime::from_millis(0),
            sub: None,
            next_seq: 1,
            holder: None,
            part: None,
            taken_part: None,
        };
        let command = Command::Job(job::Command::Create(create));
        let id = id.parse().unwrap();
        let outcome = kind::apply(&id, None, &command, &context).unwrap();
        let stored = Stored {
            state: outcome.state,
            created_seq: 1,
            last: Place::untagged(1),
            last_at: context.now,
        };
        ((1.try_into().unwrap(), job::KIND, id), stored)
    }

    #[test]
    fn states_are_kept_within_their_bytes_and_those_used_last_stay() {
        const MOST: usize = 40_000;
        let mut states = States::new(MOST);
        let (first, stored) = job("first", 10_000);
        states.put(first.clone(), stored);
        for number in 0..10 {
            let (address, stored) = job(&number.to_string(), 10_000);
            states.put(address.clone(), stored);
            assert!(states.bytes <= MOST);
            assert!(states.get(&first).is_some(), "it is in use");
            assert!(states.contains(&address));
        }
        assert_eq!(states.states.len(), 3);
        let (address, stored) = job("9", 20);
        states.put(address.clone(), stored);
        states.pop(&address);
        states.pop(&first);
        let left = states.states.iter().map(|(_, stored)| stored.bytes());
        assert_eq!(states.bytes, left.sum::<usize>());
        states.max_bytes = 5_000;
        let (address, stored) = job("huge", 10_000);
        states.put(address.clone(), stored);
        assert!(states.get(&address).is_some(), "it can be used");
        assert_eq!(states.states.len(), 1);
    }
}
