//! Publishers that send commands to any node, repeat those of which they have no answer, and check the answers.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt;
use tidings::event::Event;
use tidings::id::{Place, SchoolId};
use tidings::log::writer::Receipts;
use tidings::log::{Allowance, CommandError, Envelope, Receipt, StoreError};
use tokio::task::unconstrained;

use super::super::command;
use super::super::ledger::schools;
use super::Cluster;
use super::database::NodeWriter;

/// Maximum number of commands with an idempotency key that are kept, to be repeated.
const REPEATABLE: usize = 8;

type Answer = Pin<Box<dyn Future<Output = Result<Receipts, StoreError>>>>;

/// A command that somebody sent.
pub(super) struct Sent {
    school: SchoolId,
    envelope: Envelope,
    /// Its event, if it was answered.
    answered: Option<Place>,
    /// Whether it was sent before, so that its subject's state may have changed since it was made.
    is_repeated: bool,
}

impl Cluster {
    /// Sends commands to some nodes at the same time. Their writers work in any order, and may wait for one another's
    /// answers from the database.
    pub(super) fn publish(&mut self) -> Result<(), String> {
        let running = self.running();
        if running.is_empty() {
            return Ok(());
        }
        let requests = self.rng.usize(1..=3);
        let mut pending: Vec<(Vec<Sent>, Answer)> = Vec::new();
        let mut commands = 0;
        for _ in 0..requests {
            let number = self.rng.choice(&running).copied().unwrap();
            let sent = self.some_request();
            commands += sent.len();
            let school = sent[0].school;
            let envelopes = sent
                .iter()
                .map(|request| request.envelope.clone())
                .collect();
            pending.push((sent, self.send(number, school, envelopes)));
        }
        let is_alone = commands == 1 && !self.shared.has_in_flight();
        let mut writers: Vec<NodeWriter> = self
            .running_nodes()
            .map(|node| Arc::clone(&node.writer))
            .collect();
        self.shared.rivals(writers.clone());
        self.rng.shuffle(&mut writers);
        while writers.iter().any(|writer| writer.lock().unwrap().step()) {}
        self.shared.rivals(Vec::new());
        self.shared.check()?;
        for (sent, answer) in pending {
            let answer = answer.now_or_never().expect("all is done");
            // The node may have ended before the answer was sent.
            let answer = match self.rng.u8(0..12) {
                0 => Err(StoreError::Unknown),
                _ => answer,
            };
            self.is_answered(sent, answer, is_alone)?;
        }
        Ok(())
    }

    fn some_request(&mut self) -> Vec<Sent> {
        if !self.keyed.is_empty() && self.rng.u8(0..4) == 0 {
            let index = self.rng.usize(0..self.keyed.len());
            return vec![self.keyed.swap_remove(index)];
        }
        let school = self.rng.choice(schools()).unwrap();
        let count = self.rng.usize(1..=3);
        let sent = (0..count).map(|_| {
            self.commands += 1;
            Sent {
                school,
                envelope: command(&mut self.rng, &self.ledger, school, self.commands),
                answered: None,
                is_repeated: false,
            }
        });
        sent.collect()
    }

    fn send(&mut self, number: usize, school: SchoolId, commands: Vec<Envelope>) -> Answer {
        let handle = Arc::clone(&self.nodes[number].as_ref().unwrap().handle);
        let answer = async move {
            let allowance = Arc::<Allowance>::default();
            handle.append(school, commands, allowance).await
        };
        let mut answer: Answer = Box::pin(unconstrained(answer));
        let is_early = answer.as_mut().now_or_never().is_some();
        assert!(!is_early, "nobody has carried it out");
        answer
    }

    /// Checks an answer. With `is_alone`, nothing else can have changed the state that the command was made for.
    fn is_answered(
        &mut self,
        sent: Vec<Sent>,
        answer: Result<Receipts, StoreError>,
        is_alone: bool,
    ) -> Result<(), String> {
        let count = sent.len();
        let receipts = match answer {
            Ok(receipts) => receipts,
            Err(error) => (0..count)
                .map(|_| Err(CommandError::Store(error.clone())))
                .collect(),
        };
        for (mut sent, receipt) in sent.into_iter().zip(receipts) {
            let (subject, school) = (&sent.envelope.subject, sent.school);
            self.note(format_args!("{school} {subject} is answered {receipt:?}"));
            match (&receipt, sent.answered) {
                (Ok(Receipt::Committed(event)), None) => {
                    self.is_in_log(&sent, event)?;
                    sent.answered = Some(event.place());
                }
                (Ok(Receipt::Committed(event)), Some(place)) => {
                    // A failover may have lost the first one.
                    if !self.ledger.has_lost(sent.school, place) {
                        return Err(format!("{} was carried out before", event.seq));
                    }
                    self.is_in_log(&sent, event)?;
                    sent.answered = Some(event.place());
                }
                (Ok(Receipt::Repeated(event)), answered) => {
                    let is_same = answered.is_none_or(|place| place == event.place());
                    let is_lost =
                        answered.is_some_and(|place| self.ledger.has_lost(sent.school, place));
                    if !(is_same || is_lost) {
                        return Err(format!("a repetition is answered with {}", event.seq));
                    }
                    // The first one may have changed nothing. Then the answer is the state at that time, and a failover can
                    // lose the key without that event.
                    sent.answered = (!event.snapshot).then(|| event.place());
                }
                (Err(CommandError::Rule(error)), answered) => {
                    let is_lost =
                        answered.is_some_and(|place| self.ledger.has_lost(sent.school, place));
                    if answered.is_some() && !is_lost {
                        return Err(format!("a repetition is answered with {error}"));
                    }
                    if is_alone && answered.is_none() && !sent.is_repeated {
                        let subject = &sent.envelope.subject;
                        return Err(format!("a command for {subject} is rejected: {error}"));
                    }
                    continue;
                }
                (Ok(Receipt::Unchanged(_)), _) => continue,
                (Err(CommandError::Store(_)), _) => {}
                (other, _) => return Err(format!("a command is answered with {other:?}")),
            }
            sent.is_repeated = true;
            if sent.envelope.idempotency.is_some() {
                self.keyed.push(sent);
            }
        }
        while self.keyed.len() > REPEATABLE {
            self.keyed.remove(0);
        }
        Ok(())
    }

    fn is_in_log(&self, sent: &Sent, event: &Event) -> Result<(), String> {
        let there = self.ledger.event(sent.school, event.seq);
        match there.is_some_and(|there| there.place() == event.place()) {
            true => Ok(()),
            false => Err(format!("{} is acknowledged and not in the log", event.seq)),
        }
    }
}
