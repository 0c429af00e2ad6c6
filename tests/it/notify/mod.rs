//! Notifiers: each medium against a real receiver, and the runner that keeps its promises through restarts.

mod copied;
mod email;
mod home_assistant;
mod leases;
mod mqtt;
mod ntfy;
pub(crate) mod receivers;
mod retry_after;
mod runner;
mod set_aside;
mod webhook;
