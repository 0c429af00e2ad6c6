//! Shared by the targets: limits on time and memory, the server under test, and structured inputs.

pub mod bounds;
pub mod server;
pub mod shapes;
