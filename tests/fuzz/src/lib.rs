//! What the targets have in common: bounds of time and memory, the server under test, and inputs by their structure.

pub mod bounds;
pub mod server;
pub mod shapes;
