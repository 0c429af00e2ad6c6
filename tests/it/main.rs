//! The integration tests: one binary, so that linking happens once (the simulation is one of its own). Real servers on port 0, real HTTP, SSE
//! and WebSocket clients, real SQLite files.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the numbers of a test are small"
)]
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected should say so and end"
)]

mod support;

mod access;
mod acknowledgements;
mod added_kind;
mod attacks;
mod backlog;
mod bad_input;
mod balanced;
mod behind_proxy;
mod browsers;
mod bus_contract;
mod bus_failover;
mod chaos;
mod chaos_silence;
mod characteristics;
mod charts;
mod circles;
mod cli;
mod clocks;
mod contract;
mod conversation;
mod copying;
mod copying_interrupted;
mod cursors;
#[cfg(target_os = "linux")]
mod dead_peers;
mod decisions;
mod demo;
mod dependencies;
mod devices;
mod devices_on_nodes;
mod disk;
mod documentation;
mod durability;
mod embed;
mod enrollments;
mod exact_input;
mod examples;
mod exemptions;
mod existing_backends;
mod existing_clients;
mod feed;
mod fencing;
mod floors;
mod forms;
mod frames;
mod handshake;
mod install;
mod invariants;
mod isolation;
mod job_rules;
mod jobs_api;
mod kinds_documentation;
mod limits;
mod links;
mod locks;
mod logins;
mod lone_commits;
mod methods;
mod migrating;
mod monitor;
mod monitor_actions;
mod monitor_live;
mod monitor_looks;
mod monitor_visitor;
mod notify;
mod opening;
mod origins;
mod parts;
mod pings;
mod pipelines;
mod postgres_frozen;
mod postgres_plans;
mod postgres_schema;
mod postgres_tls;
mod postgres_waits;
mod pressure;
mod proxies;
mod quickstart;
mod ranges;
mod reads;
mod reconnecting;
mod references;
mod relay;
mod restores;
mod rfc6455;
mod run;
mod rust_client;
mod schedule_rules;
mod schedules;
mod schedules_command;
mod search;
mod settings;
mod several_nodes;
mod several_schools;
mod shells;
mod shutdown;
mod silence;
mod source_rules;
mod store_contract;
mod streams;
mod switches;
mod tasks;
mod tiers;
mod time_left;
mod tls;
mod troubleshooting;
mod two_nodes;
mod watching;
mod watching_proxies;
mod websocket;
mod writes;
