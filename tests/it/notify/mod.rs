//! Notifiers: each medium against a real receiver, and the runner that keeps its promises through restarts.

mod email;
mod mqtt;
mod receivers;
mod runner;
mod webhook;
