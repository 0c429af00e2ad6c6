//! The log and the states behind it: the rules of writing them, and the ports through which everything else reads.
//!
//! A store keeps, per school, an ordered log of events and the present state of every subject. It does not know
//! subscribers. It implements four ports, each with a part of the contract suite in `tests/it/store_contract`:
//!
//! ```text
//!              commands                                      reads
//!                 │                                            │
//!   Journal::append                        Log::*  Catalog::*  Consumers::*  Leases::*
//!                 ▼
//!   writer::Writer     turns between schools, group commit          (the same for every store)
//!                 ▼
//!   decide::Rules      (facts, commands, now) → states, events, keys      (pure, the only copy)
//!                 ▼
//!   writer::Backend    Facts + commit: what a database implements
//! ```
//!
//! What a store promises:
//!
//! - **One transaction.** A command is decided against the subject's state and committed together with its
//!   event; [`Journal::append`] answers after the commit (invariant 1). A command that breaks a rule fails
//!   alone and leaves its neighbours be. If the commit fails, it had no effect.
//! - **Turns.** Commands of one call are carried out in order, in one commit or in several, with those of other schools
//!   in between. If one of these commits fails, nothing of the commands from there on has happened.
//! - **Order.** A school's events are numbered 1, 2, 3, … without holes, in commit order (invariant 2).
//!   Committed events reach the `committed` channel in that order, after the commit.
//! - **Reading.** [`Log::replay`] returns what lies after a cursor, [`Log::snapshot`] the present states in
//!   the order of their last events; each page says how far it reaches. A snapshot up to `head` followed by
//!   the events after `head` is the whole story. Because a snapshot is told in the order of the log, the
//!   cursor of any of its entries is a place from which a replay loses nothing.
//! - **Fair reads.** Reading much does not keep others from reading: each school has its turn after one read, or one window
//!   of a longer one, of each other school. A request that cannot have a turn is refused ([`StoreError::Busy`]).
//! - **Forgetting.** [`Journal::sweep`] removes what is past retention in small steps and moves `floor` with it.
//!
//! Deliberately absent: SQL, threads of a store, HTTP, and who is subscribed.

mod allowance;
pub mod catalog;
mod command;
mod committed;
pub mod consumers;
pub mod decide;
mod error;
pub mod facts;
pub mod journal;
pub mod leases;
pub mod writer;

pub use self::allowance::{Allowance, Room};
pub use self::catalog::{
    Catalog, Ending, ListPage, ListQuery, Order, Overdue, PartPage, PartQuery, Searched, Stalled,
    StoredSubject, Which,
};
pub use self::command::{CommandError, Envelope, Idempotency, Receipt};
pub use self::committed::{Batches, Committed, Meter, Reading};
pub use self::consumers::Consumers;
pub use self::error::{StoreError, Waiting};
pub use self::journal::{Bounds, Journal, LastEvent, Log, Page, Stretch};
pub use self::leases::Leases;

/// All four ports.
pub trait Store: Journal + Catalog + Consumers + Leases {}

impl<T: Journal + Catalog + Consumers + Leases> Store for T {}
