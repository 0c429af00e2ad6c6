//! Which bus the settings ask for.

use std::sync::Arc;

#[cfg(feature = "postgres")]
use async_trait::async_trait;

use crate::bus::Bus;
use crate::bus::local::LocalBus;
#[cfg(feature = "postgres")]
use crate::bus::postgres::{Connect, Messages, PostgresBus, messages};
#[cfg(feature = "redis")]
use crate::bus::redis::RedisBus;
use crate::config::bus::BusUrl;
use crate::config::{ConfigError, Database, Settings};
use crate::id::Epoch;
use crate::log::nodes::Fingerprint;
#[cfg(feature = "postgres")]
use crate::store::postgres::Address;

/// A bus that the settings ask for and that this program has.
pub enum Choice {
    /// None: there is no other node.
    Local,
    /// Redis or Valkey.
    #[cfg(feature = "redis")]
    Redis(BusUrl),
    /// Notifications of the database itself.
    #[cfg(feature = "postgres")]
    Postgres(Box<Address>),
}

/// Returns the bus that the settings ask for, or what is wrong with them.
pub fn check(settings: &Settings, database: &Database) -> Result<Choice, ConfigError> {
    let url = settings.bus()?;
    match database {
        Database::File(_) if url.is_some() => Err(ConfigError::Invalid {
            key: "bus_url",
            problem: "needs a database that several nodes can share; remove it, or name a Postgres database by `database_url`".into(),
        }),
        Database::File(_) => Ok(Choice::Local),
        Database::Postgres(_) if url.is_some() => of_url(url),
        #[cfg(feature = "postgres")]
        Database::Postgres(shared) => {
            let (key, url) = match &settings.direct_url {
                Some(direct) => ("direct_url", direct),
                None => ("database_url", shared),
            };
            let address = Address::parse(url, settings.prepared_statements);
            address.map(Box::new).map(Choice::Postgres).map_err(|error| ConfigError::Invalid {
                key,
                problem: error.to_string(),
            })
        }
        // The store rejects it.
        #[cfg(not(feature = "postgres"))]
        Database::Postgres(_) => Ok(Choice::Local),
    }
}

#[cfg(feature = "redis")]
fn of_url(url: Option<BusUrl>) -> Result<Choice, ConfigError> {
    Ok(url.map_or(Choice::Local, Choice::Redis))
}

#[cfg(not(feature = "redis"))]
fn of_url(_: Option<BusUrl>) -> Result<Choice, ConfigError> {
    Err(ConfigError::Invalid {
        key: "bus_url",
        problem: "is not built in: it needs Tidings' Cargo feature `redis`".into(),
    })
}

impl Choice {
    /// Creates the bus of a database with this epoch, for nodes with this secret.
    pub fn bus(self, epoch: Epoch, secret: Fingerprint) -> Arc<dyn Bus> {
        #[cfg(not(feature = "redis"))]
        drop(secret);
        #[cfg(not(any(feature = "redis", feature = "postgres")))]
        let _ = epoch;
        match self {
            Choice::Local => Arc::new(LocalBus),
            #[cfg(feature = "redis")]
            Choice::Redis(url) => Arc::new(RedisBus::new(url, epoch).with_secret(secret)),
            #[cfg(feature = "postgres")]
            Choice::Postgres(address) => Arc::new(PostgresBus::new(Direct(*address), epoch)),
        }
    }
}

/// Connections to the database itself.
#[cfg(feature = "postgres")]
struct Direct(Address);

#[cfg(feature = "postgres")]
#[async_trait]
impl Connect for Direct {
    async fn connect(&self) -> Result<(tokio_postgres::Client, Messages), tokio_postgres::Error> {
        let (client, connection) = self.0.client().await?;
        Ok((client, messages(connection)))
    }
}
