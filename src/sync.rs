//! Locks and atomics of the hub. `tests/interleavings.rs` compiles the hub with instrumented replacements, which try
//! every order in which threads can reach them.

pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

pub(crate) mod atomic {
    pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
}
