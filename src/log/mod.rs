//! The log and the current states: the rules for writing them, and the ports through which everything else reads them.
//!
//! A store keeps, per school, an ordered log of events and the current state of every subject. It knows nothing of
//! subscribers. It implements seven ports (`Journal` includes `Log`); the contract suite in `tests/it/store_contract`
//! has a part for each:
//!
//! ```text
//!              commands                                      reads
//!                 │                                            │
//!   Journal::append             Log::*  Catalog::*  Consumers::*  Leases::*  Heartbeats::*  Nodes::*  PingKeys::*
//!                 ▼
//!   writer::Writer     turns between schools, group commit          (the same for every store)
//!                 ▼
//!   decide::Rules      (facts, commands, now) → states, events, keys      (pure, the only copy)
//!                 ▼
//!   writer::Backend    Facts + commit: what a database implements
//! ```
//!
//! What a store guarantees:
//!
//! - **One transaction.** A command is decided against the subject's state and committed together with its event;
//!   [`Journal::append`] answers after the commit (invariant 1). A command that breaks a rule fails alone; the other
//!   commands of its group are unaffected. If the commit fails, the command had no effect; only
//!   [`StoreError::Unknown`] leaves that open.
//! - **Turns.** The commands of one call are carried out in order, in one commit or several, possibly with commits of
//!   other schools in between. If one of these commits fails, its commands and all later ones of the call have no effect.
//! - **Order.** A school's events are numbered 1, 2, 3, … without gaps, in commit order (invariant 2). After the commit
//!   they are sent to the `committed` channel in that order.
//! - **Reading.** [`Log::replay`] returns the events after a cursor, [`Log::snapshot`] the current states in the order of
//!   their last events; each page states how far it reaches. A snapshot up to `head`, followed by the events after
//!   `head`, is complete. Because a snapshot follows the order of the log, a reader that received only part of it can
//!   continue with a replay from the cursor of the last entry in that part.
//! - **Fair reads.** Large reads do not block others: each school gets its turn after at most one read, or one window of
//!   a longer read, of each other school. A request that cannot get a turn is rejected ([`StoreError::Busy`]).
//! - **Retention.** [`Journal::sweep`] removes data past its retention in small steps, and advances `floor` accordingly.
//!
//! Deliberately absent: SQL, a store's threads, HTTP, and subscriptions.

mod allowance;
pub mod catalog;
mod command;
mod committed;
pub mod consumers;
pub mod decide;
mod error;
pub mod facts;
pub mod heartbeats;
pub mod hints;
pub mod journal;
pub mod leases;
pub mod nodes;
pub mod pings;
pub mod writer;

pub use self::allowance::{Allowance, Room};
pub use self::catalog::{
    Catalog, Ending, ListPage, ListQuery, Order, Overdue, PartPage, PartQuery, Searched, Stalled,
    StoredSubject, Tally, TallyQuery, Which,
};
pub use self::command::{CommandError, Envelope, Idempotency, Receipt};
pub use self::committed::{
    Announcer, Batches, CommitCounts, CommitMetrics, Committed, Express, Incoming,
};
pub use self::consumers::Consumers;
pub use self::error::{StoreError, Waiting};
pub use self::heartbeats::Heartbeats;
pub use self::hints::{Hint, HintCounts, Hints, LogCheck};
pub use self::journal::{Bounds, Journal, LastEvent, Log, LogRange, Page};
pub use self::leases::Leases;
pub use self::nodes::Nodes;
pub use self::pings::PingKeys;

/// All seven ports (`Journal` includes `Log`).
pub trait Store: Journal + Catalog + Consumers + Leases + Heartbeats + Nodes + PingKeys {}

impl<T: Journal + Catalog + Consumers + Leases + Heartbeats + Nodes + PingKeys> Store for T {}
