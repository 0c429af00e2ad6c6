//! The task that owns the connection to a broker.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, NetworkOptions, Outgoing, Packet, QoS,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, sleep_until, timeout};

use super::Route;
use crate::notify::notification::{DeliveryError, one_line};

/// Minimum time between a failure and the next attempt to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// Maximum time between two attempts to connect while there is nothing to deliver.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Maximum time for a clean disconnect. After that, the connection is dropped, and the last will publishes
/// `offline`.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// The message on the status topic while the connection is open.
const ONLINE: &str = "online";
/// The message on the status topic when the connection is closed.
pub(super) const OFFLINE: &str = "offline";

/// A message to publish, and the channel for its result.
pub(super) struct Delivery {
    pub(super) topic: String,
    pub(super) message: Vec<u8>,
    pub(super) done: oneshot::Sender<Result<(), DeliveryError>>,
}

/// The task that owns the connection. It ends with its owner.
pub(super) struct ConnectionTask {
    /// Holds one delivery. Further ones wait in `deliver`.
    pub(super) deliveries: mpsc::Sender<Delivery>,
    /// The sender asks the task to disconnect, and the handle waits for its end. The first call to `stop` takes
    /// both.
    running: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
    abort: AbortHandle,
}

impl ConnectionTask {
    pub(super) fn start(route: Route) -> ConnectionTask {
        let (deliveries, waiting) = mpsc::channel(1);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(run(route, waiting, stopped));
        ConnectionTask {
            deliveries,
            abort: task.abort_handle(),
            running: Mutex::new(Some((stop, task))),
        }
    }

    /// Ends the task without a clean disconnect.
    #[cfg(test)]
    pub(super) fn abort(&self) {
        self.abort.abort();
    }

    /// Whether the task has ended although `stop` was not called.
    pub(super) fn has_panicked(&self) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let task = running.as_ref().map(|(_, task)| task);
        task.is_some_and(JoinHandle::is_finished)
    }

    pub(super) async fn stop(&self) {
        let running = &self.running;
        let taken = running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((stop, task)) = taken {
            // The task may have ended by itself.
            stop.send(()).ok();
            task.await.ok();
        }
    }
}

impl Drop for ConnectionTask {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

async fn run(route: Route, waiting: mpsc::Receiver<Delivery>, mut stopped: oneshot::Receiver<()>) {
    let mut link = Link {
        route,
        connection: None,
        failures: 0,
        failed_at: Instant::now(),
    };
    tokio::select! {
        () = link.serve(waiting) => {}
        _ = &mut stopped => {}
    }
    link.leave().await;
}

/// The link to the broker: an open connection, or attempts to connect.
struct Link {
    route: Route,
    connection: Option<Connection>,
    /// Consecutive failures since the last connection.
    failures: u32,
    failed_at: Instant,
}

impl Link {
    /// Publishes deliveries. Between them, keeps the connection alive or reconnects.
    async fn serve(&mut self, mut waiting: mpsc::Receiver<Delivery>) {
        loop {
            let delivery = match &mut self.connection {
                Some(open) => tokio::select! {
                    delivery = waiting.recv() => delivery,
                    event = open.event_loop.poll() => {
                        if let Err(error) = event {
                            self.fails(&cause(&error));
                        }
                        continue;
                    }
                },
                None => tokio::select! {
                    delivery = waiting.recv() => delivery,
                    () = sleep_until(self.failed_at + self.pause()) => {
                        self.open().await;
                        continue;
                    }
                },
            };
            let Some(delivery) = delivery else { return };
            let outcome = self.deliver(&delivery).await;
            // Fails if the waiting task has given up.
            drop(delivery.done.send(outcome));
        }
    }

    /// Returns the pause after the last failure while there is nothing to deliver.
    fn pause(&self) -> Duration {
        match self.failures {
            0 => Duration::ZERO,
            failures => RECONNECT_PAUSE
                .saturating_mul(2_u32.saturating_pow(failures - 1))
                .min(RECONNECT_PAUSE_MAX),
        }
    }

    fn fails(&mut self, cause: &str) {
        if self.failures == 0 {
            let client = self.route.options.client_id();
            tracing::warn!(
                client,
                cause,
                "the connection to the broker failed; retrying"
            );
        }
        self.connection = None;
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Instant::now();
    }

    async fn open(&mut self) {
        let opened = timeout(self.route.timeout, Connection::open(&self.route)).await;
        match opened.unwrap_or_else(|_| Err(self.route.too_late())) {
            Ok(open) => {
                self.connection = Some(open);
                self.failures = 0;
            }
            Err(cause) => self.fails(&cause),
        }
    }

    async fn deliver(&mut self, delivery: &Delivery) -> Result<(), DeliveryError> {
        if self.failures > 0 {
            sleep_until(self.failed_at + RECONNECT_PAUSE).await;
        }
        let too_late = DeliveryError::unavailable(self.route.too_late());
        let publish = publish(&self.route, &mut self.connection, delivery);
        let outcome = timeout(self.route.timeout, publish).await;
        let outcome = outcome.unwrap_or(Err(too_late));
        match &outcome {
            Ok(()) => self.failures = 0,
            Err(error) => self.fails(&error.to_string()),
        }
        outcome
    }

    /// Publishes that this client is offline, and disconnects.
    async fn leave(mut self) {
        let Some(open) = &mut self.connection else {
            return;
        };
        match timeout(LEAVE_MAX, open.leave(&self.route)).await {
            Ok(Ok(())) => {}
            // No harm is done: the broker publishes the last will when a connection ends without `DISCONNECT`.
            Ok(Err(cause)) => tracing::debug!(
                cause,
                "the connection to the broker was not closed in order"
            ),
            Err(_) => tracing::debug!("the connection to the broker was not closed in order"),
        }
    }
}

async fn publish(
    route: &Route,
    connection: &mut Option<Connection>,
    delivery: &Delivery,
) -> Result<(), DeliveryError> {
    if let Some(kept) = connection {
        match kept.deliver(route, delivery).await {
            Ok(()) => return Ok(()),
            // The connection may have broken unnoticed, for example because the broker was restarted. That is no
            // reason to fail the attempt.
            Err(cause) => tracing::debug!(
                cause,
                "an open connection to the broker failed; reconnecting"
            ),
        }
        *connection = None;
    }
    let opened = Connection::open(route).await;
    let opened = opened.map_err(|cause| DeliveryError::unavailable(one_line(&cause)))?;
    // The broker has just acknowledged the connection. If it closes the connection now, this message is the cause.
    let fresh = connection.insert(opened);
    fresh.deliver(route, delivery).await.map_err(|cause| {
        DeliveryError::rejected(one_line(&format!(
            "the broker closed the connection at this message: {cause}"
        )))
    })
}

/// One connection, from its acknowledgement to its first failure. It is never polled after a failure, because that
/// would reconnect and resend.
struct Connection {
    client: AsyncClient,
    event_loop: EventLoop,
}

impl Connection {
    /// Connects, and publishes that this client is online.
    async fn open(route: &Route) -> Result<Connection, String> {
        let (client, mut event_loop) = AsyncClient::new(route.options.clone(), 1);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(route.timeout.as_secs());
        event_loop.set_network_options(network);
        let mut open = Connection { client, event_loop };
        while !matches!(open.poll().await?, Event::Incoming(Packet::ConnAck(_))) {}
        open.publish_status(route, ONLINE).await?;
        Ok(open)
    }

    async fn poll(&mut self) -> Result<Event, String> {
        let event = self.event_loop.poll().await;
        event.map_err(|error| cause(&error))
    }

    async fn deliver(&mut self, route: &Route, delivery: &Delivery) -> Result<(), String> {
        let (topic, message) = (&delivery.topic, delivery.message.clone());
        self.publish(topic, route.qos, route.retain, message).await
    }

    /// Publishes the status, if there is a status topic.
    async fn publish_status(&mut self, route: &Route, status: &str) -> Result<(), String> {
        match &route.status {
            Some(topic) => self.publish(topic, QoS::AtLeastOnce, true, status).await,
            None => Ok(()),
        }
    }

    async fn leave(&mut self, route: &Route) -> Result<(), String> {
        self.publish_status(route, OFFLINE).await?;
        let asked = self.client.try_disconnect();
        asked.map_err(|_| "the MQTT client did not accept the disconnection".to_owned())?;
        while !matches!(self.poll().await?, Event::Outgoing(Outgoing::Disconnect)) {}
        Ok(())
    }

    /// Publishes, and returns when the broker has acknowledged the message. No other publish is in progress.
    async fn publish(
        &mut self,
        topic: &str,
        qos: QoS,
        retain: bool,
        message: impl Into<Vec<u8>>,
    ) -> Result<(), String> {
        let taken = self.client.try_publish(topic, qos, retain, message);
        // Do not include the error: its text contains the message.
        taken.map_err(|_| "the MQTT client did not accept the message".to_owned())?;
        let mut sent = None;
        loop {
            match self.poll().await? {
                Event::Outgoing(Outgoing::Publish(_)) if qos == QoS::AtMostOnce => {
                    return Ok(());
                }
                Event::Outgoing(Outgoing::Publish(packet)) => sent = Some(packet),
                Event::Incoming(Packet::PubAck(ack)) if sent == Some(ack.pkid) => return Ok(()),
                Event::Incoming(Packet::PubComp(done)) if sent == Some(done.pkid) => return Ok(()),
                _ => {}
            }
        }
    }
}

fn cause(error: &ConnectionError) -> String {
    match error {
        ConnectionError::Io(error) => format!("the connection failed: {error}"),
        ConnectionError::Tls(error) => format!("TLS failed: {error}"),
        ConnectionError::ConnectionRefused(code) => format!("the broker refused: {code:?}"),
        ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => {
            "the broker did not answer in time".into()
        }
        ConnectionError::NotConnAck(_) => "the peer is not an MQTT broker".into(),
        error => format!("the connection failed: {error}"),
    }
}
