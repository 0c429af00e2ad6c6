pub mod auth;
pub mod config;
pub mod event;
pub mod id;
pub mod kind;
pub mod wire;
pub mod scope;
pub mod store;
