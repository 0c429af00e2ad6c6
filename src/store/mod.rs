//! Implementations of the [log's ports](crate::log).

mod columns;
#[cfg(feature = "postgres")]
pub mod copy;
mod numbers;
mod pace;
mod ping_keys;
#[cfg(feature = "postgres")]
pub mod postgres;
mod retention;
pub mod shared;
mod sources;
pub mod sqlite;
mod states;
mod texts;
mod turns;
#[cfg(feature = "postgres")]
mod used_key;
