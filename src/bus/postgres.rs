//! A bus over `LISTEN` and `NOTIFY`, for nodes that share a Postgres and should need no other server.
//!
//! Each school has a channel, `tidings_<epoch>_<school>`. Notifications are never part of a commit of events: each has to
//! take a lock of the whole server, which would serialise all commits. They have a connection of their own, on which a
//! commit does not wait for the disk, and those of some milliseconds share one transaction. A notification is at most
//! 8,000 bytes, so a larger event is sent only as its number.
//!
//! The connection must lead to Postgres itself: a pooler in transaction mode does not pass on notifications.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_core::stream::BoxStream;
use futures_util::StreamExt;
use futures_util::stream::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_postgres::{AsyncMessage, Client, Connection, Error, SimpleQueryMessage, Statement};

use super::{Bus, BusError, Inbox, Outgoing};
use crate::config::{
    BUS_CHANNELS_AT_ONCE, BUS_NOTIFY_MAX_BYTES, BUS_NOTIFY_PAUSE, BUS_PAUSE_MAX, BUS_PAUSE_MIN,
    BUS_PING_PERIOD, BUS_TIMEOUT,
};
use crate::id::{Epoch, SchoolId};

/// One transaction for all notifications.
const NOTIFY: &str = "SELECT pg_notify(channel, payload) FROM unnest($1::text[], $2::text[]) AS own (channel, payload)";

/// The messages of a connection, which must be polled for its client to work.
pub type Messages = BoxStream<'static, Result<AsyncMessage, Error>>;

/// Opens connections to the database.
#[async_trait]
pub trait Connect: Send + Sync + 'static {
    /// Opens a connection.
    async fn connect(&self) -> Result<(Client, Messages), Error>;
}

/// Returns the messages of a connection.
pub fn messages<S, T>(mut connection: Connection<S, T>) -> Messages
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    poll_fn(move |cx| connection.poll_message(cx)).boxed()
}

/// See the module documentation.
pub struct PostgresBus {
    server: Box<dyn Connect>,
    epoch: Epoch,
    /// The schools to listen to. Locked during requests about them, so that requests are sent in the order of the calls.
    wanted: tokio::sync::Mutex<HashSet<SchoolId>>,
    live: Mutex<Option<Arc<Live>>>,
    /// The epoch of the database to which the last connection led.
    found: Mutex<Option<String>>,
}

/// The connection in use.
struct Live {
    client: Client,
    notify: Statement,
    /// Notified when it must be replaced.
    ended: Notify,
}

impl PostgresBus {
    /// Creates the bus of a database with this epoch. [`Bus::run`] connects it.
    pub fn new(server: impl Connect, epoch: Epoch) -> PostgresBus {
        PostgresBus {
            server: Box::new(server),
            epoch,
            wanted: tokio::sync::Mutex::default(),
            live: Mutex::default(),
            found: Mutex::default(),
        }
    }

    fn channel(&self, school: SchoolId) -> String {
        format!("tidings_{}_{school}", self.epoch)
    }

    fn live(&self) -> Result<Arc<Live>, BusError> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.clone().ok_or(BusError::Disconnected)
    }

    fn set_live(&self, live: Option<Arc<Live>>) {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = live;
    }

    /// Sends a command about the channels of these schools.
    async fn request(
        &self,
        client: &Client,
        command: &str,
        schools: &[SchoolId],
    ) -> Result<(), BusError> {
        for part in schools.chunks(BUS_CHANNELS_AT_ONCE) {
            let command = |school: &SchoolId| format!("{command} \"{}\";", self.channel(*school));
            let commands: String = part.iter().map(command).collect();
            answer(client.batch_execute(&commands)).await?;
        }
        Ok(())
    }

    /// Changes which schools are listened to. If that fails, the connection is replaced, because it is unknown what it
    /// listens to.
    async fn change(&self, command: &str, schools: &[SchoolId]) -> Result<(), BusError> {
        let live = self.live()?;
        let changed = self.request(&live.client, command, schools).await;
        if changed.is_err() {
            live.ended.notify_one();
        }
        changed
    }

    /// Checks whether a connection leads to the database of the log. A node that listens elsewhere receives nothing.
    async fn identify(&self, client: &Client) -> Result<(), BusError> {
        let has_table = "SELECT 1 WHERE to_regclass('meta') IS NOT NULL";
        let found = match value(client, has_table).await? {
            Some(_) => value(client, "SELECT value FROM meta WHERE key = 'epoch'").await?,
            None => None,
        };
        let found = found.unwrap_or_else(|| "unknown".to_owned());
        let is_own = found == self.epoch.to_string();
        let mut known = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_own && known.as_ref() != Some(&found) {
            tracing::error!(
                "`direct_url` leads to another database than `database_url`: this node hears other nodes late"
            );
        }
        *known = Some(found);
        Ok(())
    }

    /// Listens to everything that is wanted, over a new connection.
    async fn begin(&self, client: Client) -> Result<Arc<Live>, BusError> {
        // Not an error: a role that may only listen is sufficient.
        if let Err(error) = self.identify(&client).await {
            tracing::debug!(%error, "it is unknown to which database the bus leads");
        }
        answer(client.batch_execute("SET synchronous_commit = off")).await?;
        let notify = answer(client.prepare(NOTIFY)).await?;
        let wanted = self.wanted.lock().await;
        let schools: Vec<SchoolId> = wanted.iter().copied().collect();
        self.request(&client, "LISTEN", &schools).await?;
        let live = Arc::new(Live {
            client,
            notify,
            ended: Notify::new(),
        });
        // Set this while `wanted` is locked, so that a later request uses this connection.
        self.set_live(Some(Arc::clone(&live)));
        Ok(live)
    }

    /// Uses a new connection until it ends. Returns why it ended, or why it could not be used.
    async fn use_connection(&self, inbox: &Inbox) -> Result<&'static str, BusError> {
        let (client, mut messages) = answer(self.server.connect()).await?;
        let receive = async {
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notification(notification) = message {
                    inbox.received(notification.payload().as_bytes().to_vec());
                }
            }
        };
        let hold = async {
            let live = self.begin(client).await?;
            tracing::info!("connected to the bus");
            inbox.is_connected(true);
            inbox.may_have_missed();
            loop {
                tokio::select! {
                    () = live.ended.notified() => return Ok("a request failed"),
                    () = sleep(BUS_PING_PERIOD) => {}
                }
                if answer(live.client.simple_query("")).await.is_err() {
                    return Ok("it did not answer");
                }
            }
        };
        tokio::select! {
            () = receive => match self.live() {
                Ok(_) => Ok("it ended"),
                Err(error) => Err(error),
            },
            held = hold => held,
        }
    }
}

#[async_trait]
impl Bus for PostgresBus {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn message_max_bytes(&self) -> usize {
        BUS_NOTIFY_MAX_BYTES
    }

    async fn publish(&self, messages: &[Outgoing]) -> Result<(), BusError> {
        let live = self.live()?;
        let mut channels = Vec::with_capacity(messages.len());
        let mut payloads = Vec::with_capacity(messages.len());
        for message in messages {
            channels.push(self.channel(message.school));
            payloads.push(std::str::from_utf8(&message.payload).expect("a message is JSON"));
        }
        answer(live.client.execute(&live.notify, &[&channels, &payloads])).await?;
        // What is committed meanwhile shares the next transaction.
        sleep(BUS_NOTIFY_PAUSE).await;
        Ok(())
    }

    async fn subscribe(&self, schools: &[SchoolId]) -> Result<(), BusError> {
        let mut wanted = self.wanted.lock().await;
        wanted.extend(schools);
        self.change("LISTEN", schools).await
    }

    async fn unsubscribe(&self, schools: &[SchoolId]) -> Result<(), BusError> {
        let mut wanted = self.wanted.lock().await;
        wanted.retain(|school| !schools.contains(school));
        self.change("UNLISTEN", schools).await
    }

    async fn run(&self, inbox: Inbox) {
        let _down = Down(self, inbox.clone());
        let mut pause = BUS_PAUSE_MIN;
        let mut is_first_failure = true;
        loop {
            let used = self.use_connection(&inbox).await;
            let was_live = self.live().is_ok();
            self.set_live(None);
            inbox.is_connected(false);
            if was_live {
                (pause, is_first_failure) = (BUS_PAUSE_MIN, true);
            }
            match used {
                Ok(reason) => {
                    tracing::warn!(reason, "the connection to the bus was lost; reconnecting");
                }
                Err(error) => {
                    if std::mem::take(&mut is_first_failure) {
                        tracing::warn!(%error, "the bus cannot be reached; retrying");
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(BUS_PAUSE_MAX);
        }
    }

    fn fingerprint(&self) -> Option<String> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.as_ref().map(|epoch| format!("postgres {epoch}"))
    }
}

/// Closes the connection when the task that maintains it ends.
struct Down<'a>(&'a PostgresBus, Inbox);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        self.0.set_live(None);
        self.1.is_connected(false);
    }
}

/// Returns the first value that a query finds.
async fn value(client: &Client, query: &str) -> Result<Option<String>, BusError> {
    let found = answer(client.simple_query(query)).await?;
    Ok(found.iter().find_map(|row| match row {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

/// Waits for an answer, but no longer than a working server needs.
async fn answer<T>(asked: impl Future<Output = Result<T, Error>>) -> Result<T, BusError> {
    let answered = timeout(BUS_TIMEOUT, asked).await;
    answered
        .map_err(|_| BusError::Late)?
        .map_err(|error| BusError::Failed(cause(&error)))
}

/// Returns the innermost cause of an error, which is the most specific and contains no password.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
