//! A bus over Redis or Valkey: publish/subscribe over RESP3, on one server, behind Sentinel, or in a cluster.
//!
//! Each school has a channel, `tidings:{<epoch>-<partition>}:school:<id>`. In a cluster, the part in braces determines the
//! node: channels of a partition are on one node (sharded publish/subscribe). The epoch of the database is part of every
//! name, so that several installations can use one server. One connection publishes and receives. If it breaks, or does
//! not answer a ping in time, a new connection is made and subscribes again. Only then is the inbox told that messages may
//! have been missed.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use redis::aio::{ConnectionLike, MultiplexedConnection, SendError};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline,
    ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError, TlsMode, Value,
};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::{Bus, BusError, Inbox, NodeId, Outgoing};
use crate::config::bus::{BusMode, BusUrl};
use crate::config::{
    BUS_CHANNELS_AT_ONCE, BUS_DATABASE_KEPT, BUS_MESSAGE_MAX_BYTES, BUS_PARTITIONS, BUS_PAUSE_MAX,
    BUS_PAUSE_MIN, BUS_PING_PERIOD, BUS_TIMEOUT,
};
use crate::id::{Epoch, SchoolId};
use crate::log::nodes::Fingerprint;

/// The command that subscribes to channels, and that of a cluster.
const SUBSCRIBE: (&str, &str) = ("SUBSCRIBE", "SSUBSCRIBE");
/// The command that ends subscriptions, and that of a cluster.
const UNSUBSCRIBE: (&str, &str) = ("UNSUBSCRIBE", "SUNSUBSCRIBE");

/// See the module documentation.
pub struct RedisBus {
    url: BusUrl,
    epoch: Epoch,
    /// The schools to subscribe to. Locked during requests about subscriptions, so that requests are sent in the order of
    /// the calls.
    wanted: tokio::sync::Mutex<HashSet<SchoolId>>,
    live: Mutex<Option<Live>>,
    fingerprint: Mutex<Option<String>>,
    /// The fingerprint of the secret, which the nodes of one installation share.
    secret: Option<Fingerprint>,
}

/// A connection in use.
#[derive(Clone)]
struct Live {
    link: Link,
    /// Notified when the connection has ended or must be replaced.
    ended: Arc<Notify>,
    /// The number of channels whose subscription this node has ended, and the server has not yet confirmed.
    unsubscribing: Arc<AtomicUsize>,
}

/// What comparing the databases of the nodes on the bus has found.
#[derive(Default)]
struct Comparison {
    /// The epoch of another database, and when it was first found.
    other: Option<(Vec<u8>, Instant)>,
    is_reported: bool,
}

#[derive(Clone)]
enum Link {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl RedisBus {
    /// Creates the bus of a database with this epoch. [`Bus::run`] connects it.
    pub fn new(url: BusUrl, epoch: Epoch) -> RedisBus {
        RedisBus {
            url,
            epoch,
            wanted: tokio::sync::Mutex::default(),
            live: Mutex::default(),
            fingerprint: Mutex::default(),
            secret: None,
        }
    }

    /// Returns the bus, which reports if a node with the same secret uses another database.
    pub fn with_secret(mut self, fingerprint: Fingerprint) -> RedisBus {
        self.secret = Some(fingerprint);
        self
    }

    fn is_cluster(&self) -> bool {
        self.url.mode == BusMode::Cluster
    }

    fn channel(&self, school: SchoolId) -> String {
        let (epoch, partition) = (self.epoch, partition(school));
        format!("tidings:{{{epoch}-{partition}}}:school:{school}")
    }

    fn live(&self) -> Result<Live, BusError> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.clone().ok_or(BusError::Disconnected)
    }

    fn set_live(&self, live: Option<Live>) {
        if live.is_none() {
            // The server may be another one when the connection is back.
            *self.known_fingerprint() = None;
        }
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = live;
    }

    fn known_fingerprint(&self) -> MutexGuard<'_, Option<String>> {
        self.fingerprint
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes subscriptions over the connection in use. If that fails, the connection is replaced, because its
    /// subscriptions are unknown.
    async fn change(&self, commands: (&str, &str), schools: &[SchoolId]) -> Result<(), BusError> {
        let Live {
            mut link, ended, ..
        } = self.live()?;
        let schools = schools.iter().copied();
        let changed = self.request(&mut link, commands, schools).await;
        if changed.is_err() {
            ended.notify_one();
        }
        changed
    }

    /// Sends a command about the channels of these schools.
    async fn request(
        &self,
        link: &mut Link,
        (command, of_cluster): (&str, &str),
        schools: impl Iterator<Item = SchoolId>,
    ) -> Result<(), BusError> {
        let mut groups: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for school in schools {
            // Outside a cluster, all channels can share a command.
            let group = match self.is_cluster() {
                true => partition(school),
                false => 0,
            };
            groups.entry(group).or_default().push(self.channel(school));
        }
        let command = match self.is_cluster() {
            true => of_cluster,
            false => command,
        };
        for channels in groups.values() {
            for part in channels.chunks(BUS_CHANNELS_AT_ONCE) {
                let mut request = redis::cmd(command);
                request.arg(part);
                link.ask(&request).await?;
            }
        }
        Ok(())
    }

    async fn connect(&self, inbox: &Inbox) -> Result<Live, BusError> {
        let (ended, unsubscribing) = (Arc::new(Notify::new()), Arc::<AtomicUsize>::default());
        let (inbox, lost, expected) = (
            inbox.clone(),
            Arc::clone(&ended),
            Arc::clone(&unsubscribing),
        );
        let receive = move |push: PushInfo| -> Result<(), SendError> {
            match push.kind {
                PushKind::Message | PushKind::SMessage => {
                    // The channel precedes the message.
                    if let Some(Value::BulkString(payload)) = push.data.into_iter().nth(1) {
                        inbox.received(payload);
                    }
                }
                PushKind::Disconnection => lost.notify_one(),
                // A cluster ends the subscription itself when the channel moves to another node.
                PushKind::SUnsubscribe => {
                    let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
                    if expected
                        .fetch_update(set, get, |count| count.checked_sub(1))
                        .is_err()
                    {
                        lost.notify_one();
                    }
                }
                _ => {}
            }
            Ok(())
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(BUS_TIMEOUT))
            .set_response_timeout(Some(BUS_TIMEOUT));
        let link = match &self.url.mode {
            BusMode::Single => {
                let client = Client::open(info(&self.url)?)?;
                let config = config.set_push_sender(receive);
                let connection = client.get_multiplexed_async_connection_with_config(&config);
                Link::One(connection.await?)
            }
            BusMode::Sentinel { service } => {
                let mut client = sentinel(&self.url, service)?.build()?;
                let config = config.set_push_sender(receive);
                let connection = client.get_async_connection_with_config(&config);
                Link::One(connection.await?)
            }
            BusMode::Cluster => {
                let client: ClusterClient = cluster(&self.url).push_sender(receive).build()?;
                Link::Cluster(client.get_async_connection().await?)
            }
        };
        Ok(Live {
            link,
            ended,
            unsubscribing,
        })
    }

    /// Subscribes to everything that is wanted, over a new connection.
    async fn begin(&self, inbox: &Inbox) -> Result<Live, BusError> {
        let mut live = timeout(2 * BUS_TIMEOUT, self.connect(inbox))
            .await
            .map_err(|_| BusError::Late)??;
        let wanted = self.wanted.lock().await;
        let schools = wanted.iter().copied();
        self.request(&mut live.link, SUBSCRIBE, schools).await?;
        // Set this while `wanted` is locked, so that a later request uses this connection.
        self.set_live(Some(live.clone()));
        Ok(live)
    }

    /// Waits until the connection ends. Returns why it has ended.
    async fn hold(&self, Live { link, ended, .. }: &mut Live) -> &'static str {
        let ping = redis::cmd("PING");
        let mut comparison = Comparison::default();
        loop {
            let check = async {
                link.ask(&ping).await?;
                // Again, because the value is a new one after `FLUSHALL`.
                self.identify(link).await;
                self.compare_databases(link, &mut comparison).await
            };
            tokio::select! {
                () = ended.notified() => return "it ended",
                checked = check => if checked.is_err() {
                    return "it did not answer";
                }
            }
            tokio::select! {
                () = ended.notified() => return "it ended",
                () = sleep(BUS_PING_PERIOD) => {}
            }
        }
    }

    /// Compares the database with that of the other nodes that have the same secret. One of them writes its epoch for a short
    /// time. While nodes of two databases are connected, at least one of them finds the other's epoch again and again. A
    /// node that was stopped before its database was replaced leaves its epoch behind only once.
    async fn compare_databases(
        &self,
        link: &mut Link,
        comparison: &mut Comparison,
    ) -> Result<(), BusError> {
        let Some(secret) = self.secret.as_ref().filter(|_| !comparison.is_reported) else {
            return Ok(());
        };
        let (key, own) = (
            format!("tidings:{{{}}}:database", secret.as_str()),
            self.epoch.to_string(),
        );
        let mut write = redis::cmd("SET");
        write.arg(&key).arg(&own).arg("NX");
        write.arg("EX").arg(BUS_DATABASE_KEPT.as_secs());
        let mut read = redis::cmd("GET");
        read.arg(&key);
        let mut found = link.ask(&write).await;
        if found.is_ok() {
            found = link.ask(&read).await;
        }
        let found = match found {
            Ok(Value::BulkString(found)) if found != own.as_bytes() => found,
            Ok(_) => return Ok(()),
            // The user may not write it, or the server cannot carry it out now.
            Err(BusError::Failed(error)) => {
                tracing::debug!(%error, "the databases of the nodes on the bus are not compared");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        match &comparison.other {
            Some((epoch, since)) if *epoch == found => {
                if since.elapsed() > BUS_DATABASE_KEPT {
                    comparison.is_reported = true;
                    tracing::error!(
                        "another node has the same `jwt_secret` and the same bus, but another database, so its clients do not see the events of this node: \
                         set `database_url` to the same database on all nodes, or give a separate installation its own `jwt_secret`"
                    );
                }
            }
            _ => comparison.other = Some((found, Instant::now())),
        }
        Ok(())
    }

    /// Reads a random value that all nodes of this database find at the server; the first of them writes it. It is the
    /// fingerprint. A user that may not write it has none.
    async fn identify(&self, link: &mut Link) {
        let (epoch, new) = (self.epoch, NodeId::generate().to_string());
        let key = format!("tidings:{{{epoch}-0}}:bus");
        let mut write = redis::cmd("SET");
        write.arg(&key).arg(new).arg("NX");
        let mut read = redis::cmd("GET");
        read.arg(&key);
        let mut found = link.ask(&write).await;
        if found.is_ok() {
            found = link.ask(&read).await;
        }
        *self.known_fingerprint() = match found {
            Ok(Value::BulkString(bytes)) => String::from_utf8(bytes).ok(),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%error, "the bus's server could not be identified");
                None
            }
        };
    }
}

#[async_trait]
impl Bus for RedisBus {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn message_max_bytes(&self) -> usize {
        BUS_MESSAGE_MAX_BYTES
    }

    async fn publish(&self, messages: &[Outgoing]) -> Result<(), BusError> {
        let Live { mut link, .. } = self.live()?;
        let mut groups: BTreeMap<u64, Pipeline> = BTreeMap::new();
        let (command, is_cluster) = match self.is_cluster() {
            true => ("SPUBLISH", true),
            false => ("PUBLISH", false),
        };
        for message in messages {
            let group = match is_cluster {
                true => partition(message.school),
                false => 0,
            };
            let pipeline = groups.entry(group).or_default();
            pipeline
                .cmd(command)
                .arg(self.channel(message.school))
                .arg(&message.payload)
                .ignore();
        }
        for pipeline in groups.values() {
            link.ask_all(pipeline).await?;
        }
        Ok(())
    }

    async fn subscribe(&self, schools: &[SchoolId]) -> Result<(), BusError> {
        let mut wanted = self.wanted.lock().await;
        wanted.extend(schools);
        self.change(SUBSCRIBE, schools).await
    }

    async fn unsubscribe(&self, schools: &[SchoolId]) -> Result<(), BusError> {
        let mut wanted = self.wanted.lock().await;
        schools.iter().for_each(|school| {
            wanted.remove(school);
        });
        let count = &self.live()?.unsubscribing;
        count.fetch_add(schools.len(), Ordering::Relaxed);
        self.change(UNSUBSCRIBE, schools).await
    }

    async fn run(&self, inbox: Inbox) {
        let _down = Down(self, inbox.clone());
        let mut pause = BUS_PAUSE_MIN;
        let mut is_first_failure = true;
        loop {
            match self.begin(&inbox).await {
                Ok(mut live) => {
                    self.identify(&mut live.link).await;
                    tracing::info!("connected to the bus");
                    inbox.is_connected(true);
                    inbox.may_have_missed();
                    (pause, is_first_failure) = (BUS_PAUSE_MIN, true);
                    let reason = self.hold(&mut live).await;
                    self.set_live(None);
                    inbox.is_connected(false);
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
        self.known_fingerprint().clone()
    }
}

/// Closes the connection when the task that maintains it ends.
struct Down<'a>(&'a RedisBus, Inbox);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        self.0.set_live(None);
        self.1.is_connected(false);
    }
}

impl Link {
    async fn ask(&mut self, command: &Cmd) -> Result<Value, BusError> {
        let answer = async {
            match self {
                Link::One(connection) => connection.req_packed_command(command).await,
                Link::Cluster(connection) => connection.req_packed_command(command).await,
            }
        };
        let answer = timeout(BUS_TIMEOUT, answer).await;
        Ok(answer.map_err(|_| BusError::Late)??)
    }

    async fn ask_all(&mut self, pipeline: &Pipeline) -> Result<(), BusError> {
        let answer = async {
            match self {
                Link::One(connection) => pipeline.exec_async(connection).await,
                Link::Cluster(connection) => pipeline.exec_async(connection).await,
            }
        };
        let answer = timeout(BUS_TIMEOUT, answer).await;
        Ok(answer.map_err(|_| BusError::Late)??)
    }
}

impl From<RedisError> for BusError {
    fn from(error: RedisError) -> BusError {
        // Neither the client nor the server repeats a password.
        BusError::Failed(error.to_string())
    }
}

fn partition(school: SchoolId) -> u64 {
    school.get().unsigned_abs() % BUS_PARTITIONS
}

fn address(url: &BusUrl, (host, port): &(String, u16)) -> ConnectionAddr {
    let (host, port) = (host.clone(), *port);
    match url.is_tls {
        true => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            tls_params: None,
        },
        false => ConnectionAddr::Tcp(host, port),
    }
}

fn info(url: &BusUrl) -> Result<redis::ConnectionInfo, RedisError> {
    let mut login = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_db(url.database);
    if let Some(username) = &url.username {
        login = login.set_username(username);
    }
    if let Some(password) = &url.password {
        login = login.set_password(password.reveal());
    }
    let first = url.hosts.first().expect("a URL has a host");
    let info = address(url, first).into_connection_info()?;
    Ok(info.set_redis_settings(login))
}

fn sentinel(url: &BusUrl, service: &str) -> Result<SentinelClientBuilder, RedisError> {
    let addresses = url.hosts.iter().map(|host| address(url, host));
    let master = SentinelServerType::Master;
    let mut builder = SentinelClientBuilder::new(addresses, service, master)?
        .set_client_to_redis_protocol(ProtocolVersion::RESP3)
        .set_client_to_redis_db(url.database);
    if url.is_tls {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_sentinel_tls_mode(TlsMode::Secure);
    }
    if let Some(username) = &url.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = &url.password {
        builder = builder.set_client_to_redis_password(password.reveal());
    }
    Ok(builder)
}

fn cluster(url: &BusUrl) -> ClusterClientBuilder {
    let addresses = url.hosts.iter().map(|host| address(url, host));
    let mut builder = ClusterClientBuilder::new(addresses)
        .use_protocol(ProtocolVersion::RESP3)
        .connection_timeout(BUS_TIMEOUT)
        .response_timeout(BUS_TIMEOUT);
    if url.is_tls {
        builder = builder.tls(TlsMode::Secure);
    }
    if let Some(username) = &url.username {
        builder = builder.username(username);
    }
    if let Some(password) = &url.password {
        builder = builder.password(password.reveal());
    }
    builder
}
