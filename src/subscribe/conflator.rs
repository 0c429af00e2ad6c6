//! Conflation of ticks: at most one tick of a subject per interval on a stream.
//!
//! The first tick is sent at once. Later ticks within the interval are conflated to the newest. A milestone never
//! waits: it replaces a held tick of its subject if it includes the tick's content, and it releases all other held
//! ticks before itself, because `seq` must increase. For the same reason, a tick waits behind an earlier one that is
//! held, for at most one interval.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::HELD_TICKS_MAX;
use crate::event::Event;
use crate::hub::mailbox::Patience;
use crate::id::{Kind, SubjectId};

/// Number of subjects to remember before the first cleanup.
const SENT_MIN: usize = 64;

/// See the module documentation. An idle stream keeps no state.
pub(super) struct Conflator {
    interval: Duration,
    state: Option<Box<State>>,
}

struct State {
    interval: Duration,
    /// When the last tick of each subject was sent, if that was within the last interval or was not cleaned up yet.
    sent: HashMap<(Kind, SubjectId), Instant>,
    /// Ticks in order of `seq`: one of each subject, and a second one while the first is overdue.
    held: VecDeque<(Arc<Event>, Instant)>,
    /// The last held tick that was sent, and when its interval is over. Its subject probably ticks again before that.
    recent: Option<(Arc<Event>, Instant)>,
    /// The size of `sent` that triggers a cleanup. Doubling it keeps the amortised cost per event constant.
    tidy_at: usize,
}

impl Conflator {
    /// Creates a conflator. With an interval of zero, it conflates nothing.
    pub(super) fn new(interval: Duration) -> Conflator {
        Conflator {
            interval,
            state: None,
        }
    }

    /// Returns the conflator, and leaves one that has sent nothing.
    pub(super) fn take(&mut self) -> Conflator {
        Conflator {
            interval: self.interval,
            state: self.state.take(),
        }
    }

    pub(super) fn conflates(&self) -> bool {
        !self.interval.is_zero()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held() == 0
    }

    /// Returns the number of ticks that are held back.
    pub(super) fn held(&self) -> usize {
        self.state.as_ref().map_or(0, |state| state.held.len())
    }

    /// Returns the ticks that need not wake the reader: if they arrived before `next_due`, they would be held.
    pub(super) fn patience(&self) -> Patience {
        match &self.state {
            Some(state) if !state.held.is_empty() => Patience::AnyTick,
            Some(state) => match &state.recent {
                Some((sent, _)) => Patience::Like(Arc::clone(sent)),
                None => Patience::Never,
            },
            None => Patience::Never,
        }
    }

    /// Returns when the next held tick is due. If none is held: when a tick that has not woken the reader may be due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.state.as_ref()?.next_due()
    }

    /// Accepts an event that arrived at the time `arrived`. `now` is the current time. Passes the events that can be
    /// sent to `out`.
    pub(super) fn push(
        &mut self,
        event: Arc<Event>,
        arrived: Instant,
        now: Instant,
        out: &mut impl FnMut(Arc<Event>),
    ) {
        if !self.conflates() {
            return out(event);
        }
        let interval = self.interval;
        let state = self.state.get_or_insert_with(|| State::new(interval));
        state.push(event, arrived, now, out);
    }

    /// Sends the held ticks that were due by `then`. `now` is the current time.
    pub(super) fn release(
        &mut self,
        then: Instant,
        now: Instant,
        out: &mut impl FnMut(Arc<Event>),
    ) {
        if let Some(state) = &mut self.state {
            state.release(then, now, out);
        }
    }

    /// Removes entries of subjects whose last tick was sent more than an interval ago.
    pub(super) fn tidy(&mut self, now: Instant) {
        if let Some(state) = &mut self.state {
            state.tidy(now);
            if state.sent.is_empty() && state.held.is_empty() {
                self.state = None;
            }
        }
    }

    /// Sends all held ticks.
    pub(super) fn flush(&mut self, now: Instant, out: &mut impl FnMut(Arc<Event>)) {
        if let Some(state) = &mut self.state {
            state.flush(now, out);
        }
    }

    /// Drops held ticks that are no longer wanted.
    pub(super) fn retain(&mut self, wanted: impl Fn(&Event) -> bool) {
        if let Some(state) = &mut self.state {
            state.held.retain(|(event, _)| wanted(event));
        }
    }
}

impl State {
    fn new(interval: Duration) -> Box<State> {
        Box::new(State {
            interval,
            sent: HashMap::new(),
            held: VecDeque::new(),
            recent: None,
            tidy_at: SENT_MIN,
        })
    }

    fn next_due(&self) -> Option<Instant> {
        let next = self.held.front().or(self.recent.as_ref());
        next.map(|(_, due)| *due)
    }

    fn push(
        &mut self,
        event: Arc<Event>,
        arrived: Instant,
        now: Instant,
        out: &mut impl FnMut(Arc<Event>),
    ) {
        let same = |held: &Event| held.kind == event.kind && held.subject == event.subject;
        if !event.is_tick() {
            let supersedes = event.draft.event_type.supersedes;
            self.held.retain(|(held, _)| !(supersedes && same(held)));
            self.flush(now, out);
            return out(event);
        }
        let newest = self.held.iter().rposition(|(held, _)| same(held));
        let due = match newest.map(|index| (index, self.held[index].1)) {
            Some((index, due)) if due > arrived => {
                self.held.remove(index);
                Some(due)
            }
            // It is overdue and only waits for ticks before it. If newer ticks replaced it again and again, it would
            // never be sent.
            Some((_, due)) => Some(due + self.interval),
            None => self
                .sent
                .get(&(event.kind, event.subject.clone()))
                .map(|last| *last + self.interval),
        };
        match due {
            None if self.held.is_empty() => self.send(event, now, out),
            due => self.held.push_back((event, due.unwrap_or(now))),
        }
        if self.held.len() > HELD_TICKS_MAX {
            self.flush(now, out);
        }
        self.release(arrived, now, out);
    }

    fn release(&mut self, then: Instant, now: Instant, out: &mut impl FnMut(Arc<Event>)) {
        self.recent.take_if(|(_, due)| *due <= then);
        while self.held.front().is_some_and(|(_, due)| *due <= then) {
            let Some((event, _)) = self.held.pop_front() else {
                return;
            };
            self.recent = Some((Arc::clone(&event), now + self.interval));
            self.send(event, now, out);
        }
    }

    fn tidy(&mut self, now: Instant) {
        let interval = self.interval;
        self.sent.retain(|_, last| *last + interval > now);
        self.sent.shrink_to_fit();
        self.tidy_at = (self.sent.len() * 2).max(SENT_MIN);
    }

    fn flush(&mut self, now: Instant, out: &mut impl FnMut(Arc<Event>)) {
        while let Some((event, _)) = self.held.pop_front() {
            self.send(event, now, out);
        }
    }

    fn send(&mut self, event: Arc<Event>, now: Instant, out: &mut impl FnMut(Arc<Event>)) {
        self.sent.insert((event.kind, event.subject.clone()), now);
        if self.sent.len() > self.tidy_at {
            self.tidy(now);
        }
        out(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::mailbox::tests::event;

    /// Otherwise, the ticks of a subject that reports constantly would be sent only after the others have become
    /// silent.
    #[test]
    fn an_overdue_tick_is_delivered_and_not_replaced() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut conflator = Conflator::new(Duration::from_millis(100));
        let mut delivered = Vec::new();
        for (seq, subject, millis) in [
            (1, "busy", 0),
            (2, "other", 50),
            // Due at 150.
            (3, "other", 60),
            // Due at 100, and has to wait for the one before it.
            (4, "busy", 70),
            (5, "busy", 120),
        ] {
            let now = at(millis);
            let mut out = |event: Arc<Event>| delivered.push(event.seq);
            conflator.push(event(seq, subject, false), now, now, &mut out);
        }
        assert_eq!(delivered, [1, 2]);
        conflator.release(at(150), at(150), &mut |event| delivered.push(event.seq));
        assert_eq!(delivered, [1, 2, 3, 4]);
        conflator.release(at(200), at(200), &mut |event| delivered.push(event.seq));
        assert_eq!(delivered, [1, 2, 3, 4, 5]);
    }

    /// A subject that ticks constantly wakes its readers once per interval, by their timers.
    #[test]
    fn after_a_held_tick_was_sent_its_subject_wakes_nobody_for_an_interval() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut conflator = Conflator::new(Duration::from_millis(100));
        let mut out = |_| {};
        conflator.push(event(1, "a", false), at(0), at(0), &mut out);
        assert!(
            matches!(conflator.patience(), Patience::Never),
            "it may never tick again"
        );
        conflator.push(event(2, "a", false), at(30), at(30), &mut out);
        assert!(matches!(conflator.patience(), Patience::AnyTick));
        conflator.release(at(101), at(101), &mut out);
        assert!(matches!(conflator.patience(), Patience::Like(last) if last.seq == 2));
        assert_eq!(conflator.next_due(), Some(at(201)));
        assert!(conflator.is_empty());
        conflator.push(event(3, "a", false), at(200), at(201), &mut out);
        assert_eq!(conflator.next_due(), Some(at(201)));
        conflator.release(at(201), at(201), &mut out);
        assert_eq!(conflator.next_due(), Some(at(301)));
        conflator.release(at(301), at(301), &mut out);
        assert!(matches!(conflator.patience(), Patience::Never));
        assert_eq!(conflator.next_due(), None);
    }

    #[test]
    fn a_held_tick_that_is_not_due_yet_is_replaced_by_a_newer_one() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut conflator = Conflator::new(Duration::from_millis(100));
        let mut delivered = Vec::new();
        for (seq, millis) in [(1, 0), (2, 30), (3, 60)] {
            let now = at(millis);
            let mut out = |event: Arc<Event>| delivered.push(event.seq);
            conflator.push(event(seq, "a", false), now, now, &mut out);
        }
        conflator.release(at(100), at(100), &mut |event| delivered.push(event.seq));
        assert_eq!(delivered, [1, 3]);
    }

    #[test]
    fn no_more_ticks_are_held_than_the_bound() {
        let now = Instant::now();
        let mut conflator = Conflator::new(Duration::from_millis(100));
        let mut delivered = Vec::new();
        let mut push = |seq: usize, subject: usize| {
            let event = event(seq as u64, &subject.to_string(), false);
            let mut out = |event: Arc<Event>| delivered.push(event.seq);
            conflator.push(event, now, now, &mut out);
            delivered.len()
        };
        // The first one is sent, and the others wait behind its successor.
        assert_eq!(push(1, 0), 1);
        for number in 0..HELD_TICKS_MAX {
            assert_eq!(push(number + 2, number), 1);
        }
        assert_eq!(push(HELD_TICKS_MAX + 2, HELD_TICKS_MAX), HELD_TICKS_MAX + 2);
        assert!(conflator.is_empty());
        assert!(delivered.is_sorted());
    }

    #[test]
    fn subjects_that_have_been_quiet_for_an_interval_are_forgotten() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut conflator = Conflator::new(Duration::from_millis(100));
        let known = |conflator: &Conflator| {
            let state = conflator.state.as_ref();
            state.map_or(0, |state| state.sent.len())
        };
        let push = |conflator: &mut Conflator, seq: u64, is_milestone, millis| {
            let now = at(millis);
            let event = event(seq, &seq.to_string(), is_milestone);
            conflator.push(event, now, now, &mut |_| {});
        };
        push(&mut conflator, 1, false, 0);
        push(&mut conflator, 2, false, 50);
        push(&mut conflator, 3, true, 60);
        assert_eq!(known(&conflator), 2, "a milestone delays nothing");
        conflator.tidy(at(99));
        assert_eq!(known(&conflator), 2);
        conflator.tidy(at(100));
        assert_eq!(known(&conflator), 1);
        conflator.tidy(at(150));
        assert!(conflator.state.is_none());
        // Nor do many subjects make it grow until the next heartbeat.
        for seq in 1..=SENT_MIN as u64 {
            push(&mut conflator, seq, false, 200);
        }
        assert_eq!(known(&conflator), SENT_MIN);
        push(&mut conflator, 1_000, false, 400);
        assert_eq!(known(&conflator), 1);
    }

    /// Otherwise, each event of a stream with many subjects would scan all of them.
    #[test]
    fn subjects_are_looked_through_only_when_there_are_twice_as_many() {
        let begin = Instant::now();
        let mut conflator = Conflator::new(Duration::from_millis(100));
        let mut push = |seq: u64, now: Instant| {
            let event = event(seq, &seq.to_string(), false);
            conflator.push(event, now, now, &mut |_| {});
            let state = conflator.state.as_ref().unwrap();
            (state.sent.len(), state.tidy_at)
        };
        push(0, begin);
        let later = begin + Duration::from_millis(200);
        for seq in 1..SENT_MIN {
            assert_eq!(push(seq as u64, later), (seq + 1, SENT_MIN));
        }
        assert_eq!(push(1_000, later), (SENT_MIN, 2 * SENT_MIN));
    }
}
