//! Implementations of the [log's ports](crate::log).

pub mod sqlite;
