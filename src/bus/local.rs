//! No bus: for a single node, or for nodes that only compare the heads of their logs.

use std::future::pending;

use async_trait::async_trait;

use super::{Bus, BusError, Inbox, Outgoing};
use crate::config::BUS_MESSAGE_MAX_BYTES;
use crate::id::SchoolId;

/// Carries no messages. The nodes find all events in the log.
#[derive(Debug, Default)]
pub struct LocalBus;

#[async_trait]
impl Bus for LocalBus {
    fn name(&self) -> &'static str {
        "none"
    }

    fn message_max_bytes(&self) -> usize {
        BUS_MESSAGE_MAX_BYTES
    }

    async fn publish(&self, _: &[Outgoing]) -> Result<(), BusError> {
        Ok(())
    }

    async fn subscribe(&self, _: &[SchoolId]) -> Result<(), BusError> {
        Ok(())
    }

    async fn unsubscribe(&self, _: &[SchoolId]) -> Result<(), BusError> {
        Ok(())
    }

    async fn run(&self, _: Inbox) {
        pending().await
    }

    fn fingerprint(&self) -> Option<String> {
        Some(self.name().to_owned())
    }
}
