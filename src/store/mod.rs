//! Implementations of the [log's ports](crate::log).

mod columns;
mod numbers;
#[cfg(feature = "postgres")]
pub mod postgres;
mod retention;
pub mod sqlite;
mod states;
mod texts;
mod turns;
