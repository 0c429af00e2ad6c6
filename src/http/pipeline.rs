//! Commands of one connection, carried out while more of them arrive.
//!
//! Commands wait while earlier ones of the same connection are being committed. Those that have gathered meanwhile are then
//! carried out together, as a batch. So the commands of a connection take effect in order, many of them share a commit, and
//! a single one is carried out at once. Each is answered after its commit, in the order of arrival.
//!
//! The unanswered commands are bounded by [`PIPELINE_COMMANDS`] and [`PIPELINE_BYTES`]: the transport passes no more commands
//! until the client has read answers. Each command counts towards the limits of a single request. Memory is reserved for each
//! round, and released when its last answer has been sent.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio_util::task::AbortOnDropHandle;

use super::lines::{Line, write_result};
use super::problem::Problem;
use crate::app::{Answer, BatchItem, Rejected};
use crate::auth::Access;
use crate::config::{PIPELINE_BYTES, PIPELINE_COMMANDS, PIPELINE_ROUND};
use crate::id::SchoolId;
use crate::log::Allowance;
use crate::rejections::RequestSource;
use crate::service::Tidings;

/// See the [module documentation](self).
pub(super) struct Pipeline {
    shared: Arc<Shared>,
    waiting: VecDeque<Item>,
    waiting_bytes: usize,
    /// The round that is being carried out, and its number of commands.
    round: Option<(AbortOnDropHandle<Answers>, usize)>,
    answers: Answers,
}

/// What all rounds need.
struct Shared {
    tidings: Arc<Tidings>,
    source: RequestSource,
    /// Whether to write `status` in upper case.
    upper: bool,
}

/// A command, or the problem with it, and how it is answered.
struct Item {
    /// How its answer begins.
    prefix: Vec<u8>,
    bytes: usize,
    asked: Result<(SchoolId, BatchItem), Problem>,
}

/// Answers that have not been sent yet, with the memory that is reserved for them.
#[derive(Default)]
struct Answers {
    lines: VecDeque<Vec<u8>>,
    _allowance: Option<Arc<Allowance>>,
}

impl Pipeline {
    pub(super) fn new(tidings: Arc<Tidings>, source: RequestSource, upper: bool) -> Pipeline {
        Pipeline {
            shared: Arc::new(Shared {
                tidings,
                source,
                upper,
            }),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            round: None,
            answers: Answers::default(),
        }
    }

    /// Whether another command can be passed.
    pub(super) fn has_room(&self) -> bool {
        let in_round = self.round.as_ref().map_or(0, |(_, commands)| *commands);
        self.waiting.len() + in_round + self.answers.lines.len() < PIPELINE_COMMANDS
            && self.waiting_bytes < PIPELINE_BYTES
    }

    /// Takes a command of this many bytes, whose answer is to begin with `prefix`, a part of a JSON object.
    pub(super) fn push(&mut self, access: &Access, prefix: Vec<u8>, bytes: usize, line: Line) {
        let service = self.shared.tidings.publications();
        let admitted = match line.school {
            Some(school) => service.admit_item(access, school),
            None => Ok(()),
        };
        let asked = match admitted {
            Ok(()) => line.asked,
            Err(rejected) => line.asked.and(Err(rejected.into())),
        };
        self.waiting_bytes += bytes;
        self.waiting.push_back(Item {
            prefix,
            bytes,
            asked,
        });
    }

    /// Drops the commands that are not being carried out yet. They have no effect, and are not answered. The caller passes no
    /// more commands.
    pub(super) fn stop(&mut self) {
        self.waiting.clear();
        self.waiting_bytes = 0;
    }

    /// Returns the next answer, or none if every command is answered. Carries out the waiting commands with the permissions of
    /// `access`.
    pub(super) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        access: &Access,
    ) -> Poll<Option<Vec<u8>>> {
        loop {
            if let Some(answer) = self.answers.lines.pop_front() {
                return Poll::Ready(Some(answer));
            }
            if let Some((round, _)) = &mut self.round {
                let done = ready!(Pin::new(round).poll(cx));
                self.round = None;
                match done {
                    Ok(answers) => self.answers = answers,
                    // The server is shutting down.
                    Err(_) => self.stop(),
                }
                continue;
            }
            self.answers = Answers::default();
            if self.waiting.is_empty() {
                return Poll::Ready(None);
            }
            self.begin(access);
        }
    }

    /// Begins to carry out the waiting commands.
    fn begin(&mut self, access: &Access) {
        let commands = self.waiting.len().min(PIPELINE_ROUND);
        let items: Vec<Item> = self.waiting.drain(..commands).collect();
        let bytes: usize = items.iter().map(|item| item.bytes).sum();
        self.waiting_bytes -= bytes;
        if self.waiting.is_empty() {
            // An idle connection keeps no buffer.
            self.waiting = VecDeque::new();
        }
        let (shared, access) = (Arc::clone(&self.shared), access.clone());
        // Use a task, because a transport is polled only while its client reads. A lookup that is not polled would keep other
        // reads waiting.
        let round = tokio::spawn(async move { carry_out(&shared, &access, items, bytes).await });
        self.round = Some((AbortOnDropHandle::new(round), commands));
    }
}

/// Carries out the items of a round, and encodes their answers.
async fn carry_out(shared: &Shared, access: &Access, items: Vec<Item>, bytes: usize) -> Answers {
    let (mut prefixes, mut wanted) = (Vec::with_capacity(items.len()), Vec::new());
    let mut outcomes = BTreeMap::new();
    for (number, item) in items.into_iter().enumerate() {
        prefixes.push(item.prefix);
        match item.asked {
            Ok((school, asked)) => wanted.push((number, school, asked)),
            Err(problem) => drop(outcomes.insert(number, Err(problem))),
        }
    }
    let numbers: Vec<usize> = wanted.iter().map(|(number, ..)| *number).collect();
    let mut allowance = None;
    match execute(shared, access, wanted, bytes as u64).await {
        Ok(Some((done, used))) => {
            let done = done.into_iter();
            outcomes.extend(done.map(|(number, answer)| (number, answer.map_err(Problem::from))));
            allowance = Some(used);
        }
        Ok(None) => {}
        Err(rejected) => {
            let problem = Problem::from(rejected);
            outcomes.extend(
                numbers
                    .into_iter()
                    .map(|number| (number, Err(problem.clone()))),
            );
        }
    }
    let answer = |(mut answer, outcome): (Vec<u8>, Result<Answer, Problem>)| {
        let Shared {
            tidings,
            source,
            upper,
        } = shared;
        write_result(&mut answer, outcome, *upper, tidings, source);
        answer.push(b'}');
        answer
    };
    let lines: VecDeque<Vec<u8>> = prefixes
        .into_iter()
        .zip(outcomes.into_values())
        .map(answer)
        .collect();
    if let Some(allowance) = &allowance {
        allowance.keep(lines.iter().map(|line| line.capacity() as u64).sum());
    }
    Answers {
        lines,
        _allowance: allowance,
    }
}

/// The outcome of each item by its number, with the memory that is reserved for them.
type Done = (BTreeMap<usize, Result<Answer, Rejected>>, Arc<Allowance>);

/// Carries out items, if there are any. Fails only if none had an effect.
async fn execute(
    shared: &Shared,
    access: &Access,
    items: Vec<(usize, SchoolId, BatchItem)>,
    bytes: u64,
) -> Result<Option<Done>, Rejected> {
    let Some((_, first, _)) = items.first() else {
        return Ok(None);
    };
    let only_school =
        Some(*first).filter(|first| items.iter().all(|(_, school, _)| school == first));
    let service = shared.tidings.publications();
    let size = (bytes, items.len() as u64);
    let mut batch = service.begin_admitted(access, only_school, size).await?;
    for (number, school, item) in items {
        batch.take(number, school, item).await?;
    }
    Ok(Some(batch.finish().await?))
}
