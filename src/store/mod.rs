//! Implementations of the [log's ports](crate::log).

mod columns;
#[cfg(feature = "postgres")]
pub mod copy;
mod numbers;
#[cfg(feature = "postgres")]
pub mod postgres;
mod retention;
pub mod shared;
pub mod sqlite;
mod states;
mod texts;
mod turns;
