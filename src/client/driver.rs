//! Reads a scope over SSE or long poll, and reconnects. `story` contains the rules; this module does the I/O.

use std::time::{Duration, Instant};

use hyper::Method;
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until, timeout, timeout_at};

use super::http::{Answer, Request};
use super::item::{Event, Item};
use super::message::MESSAGE_MAX_BYTES;
use super::sse::SseParser;
use super::story::{Next, Received, Story};
use super::{Client, ClientError, Message, Transport, rejection};

/// How much longer than a normal silence a request may take until the head of its answer arrives: the time to
/// connect.
const CONNECT: Duration = Duration::from_secs(10);

/// Scales waits, so that tests can shorten them.
#[derive(Clone, Default)]
pub(super) struct Pace {
    #[cfg(test)]
    pub(super) pauses: Option<mpsc::UnboundedSender<Duration>>,
    /// Whether waits have their real length.
    #[cfg(test)]
    pub(super) is_real: bool,
}

#[cfg(test)]
const TEST_SCALE: u32 = 20;

impl Pace {
    /// Returns the actual duration of a wait.
    fn real(&self, wait: Duration) -> Duration {
        #[cfg(test)]
        if self.pauses.is_some() && !self.is_real {
            return wait / TEST_SCALE;
        }
        wait
    }

    async fn pause(&self, pause: Duration) {
        #[cfg(test)]
        if let Some(pauses) = &self.pauses {
            let _ = pauses.send(pause);
        }
        sleep(self.real(pause)).await;
    }
}

/// Why a connection ended, unless the server just closed it.
enum Trouble {
    /// The application no longer reads.
    Left,
    Rejected(super::story::Rejection),
    /// The answer is not what this transport returns: something between client and server does not support it.
    NotThisTransport,
    Silent,
    /// The connection broke, or carried something that is not a message.
    Broken(ClientError),
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Trouble {
        Trouble::Broken(error)
    }
}

/// The task that reads and reconnects until the scope has nothing more to send, or the application no longer
/// reads.
pub(super) struct Driver {
    pub(super) client: Client,
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) pace: Pace,
    /// The minimum time from the start of one poll to the start of the next.
    pub(super) poll_gap: Duration,
    pub(super) story: Story,
    /// Whether the last event about the connection was `Connected`.
    pub(super) is_up: bool,
    pub(super) items: mpsc::Sender<Item>,
}

impl Driver {
    pub(super) async fn run(mut self) {
        loop {
            self.story.connecting(Instant::now());
            let began = tokio::time::Instant::now();
            let mut is_accepted = false;
            let ended = self.connection(&mut is_accepted).await;
            let is_known = self.story.is_connected() || !is_accepted;
            let mut problem = None;
            let next = match ended {
                Ok(()) if self.polls_on() => {
                    self.story.continues();
                    sleep_until(began + self.pace.real(self.poll_gap)).await;
                    continue;
                }
                Ok(()) if is_known => self.story.cut(),
                Ok(()) => self.story.ended_early(),
                Err(Trouble::Left) => return,
                Err(Trouble::Rejected(rejection)) => {
                    tracing::debug!(path = %self.path, status = rejection.status, "the stream was rejected");
                    problem = Some(rejection.clone().into_error());
                    self.story.rejected(rejection)
                }
                Err(Trouble::NotThisTransport) => {
                    let what = "it is neither an event stream nor JSON";
                    problem = Some(ClientError::Unreadable(what.into()));
                    self.story.unusable(None)
                }
                Err(Trouble::Silent) => self.story.silent(),
                Err(Trouble::Broken(error)) => {
                    tracing::debug!(path = %self.path, %error, "the stream was cut");
                    problem = Some(error);
                    match is_known {
                        true => self.story.cut(),
                        false => self.story.ended_early(),
                    }
                }
            };
            match next {
                Next::Connect(pause) => {
                    self.is_up = false;
                    let lost = Event::Lost {
                        error: problem,
                        was_accepted: is_accepted,
                        pause,
                    };
                    if self.items.send(Item::State(lost)).await.is_err() {
                        return;
                    }
                    self.pace.pause(pause).await;
                }
                Next::Done => return,
                Next::GiveUp(error) => {
                    // Fails if the application no longer reads.
                    let _ = self.items.send(Item::Failed(error)).await;
                    return;
                }
            }
        }
    }

    /// Whether the answer to a poll is complete, so that the next poll follows.
    fn polls_on(&self) -> bool {
        let is_poll = self.story.transport() == Transport::LongPoll;
        is_poll && self.story.is_connected() && !self.story.is_closing()
    }

    async fn connection(&mut self, is_accepted: &mut bool) -> Result<(), Trouble> {
        match self.story.transport() {
            Transport::EventStream => self.event_stream(is_accepted).await,
            Transport::LongPoll => self.long_poll(is_accepted).await,
        }
    }

    async fn event_stream(&mut self, is_accepted: &mut bool) -> Result<(), Trouble> {
        let request = self
            .request(None)
            .header(ACCEPT, "text/event-stream")
            .header(CACHE_CONTROL, "no-cache");
        let mut response = self.open(request, "text/event-stream").await?;
        *is_accepted = true;
        let mut parser = SseParser::default();
        let mut has_begun = false;
        let mut alive_at = tokio::time::Instant::now();
        loop {
            let silence = self.pace.real(self.story.silence());
            let chunk = timeout_at(alive_at + silence, response.chunk());
            let chunk = chunk.await.map_err(|_| Trouble::Silent)?;
            let Some(chunk) = chunk? else {
                return Ok(());
            };
            let events = parser.feed(&chunk)?;
            // After the first event, any bytes show that the connection is alive, even padding or a part of a
            // long event.
            has_begun |= !events.is_empty();
            if has_begun {
                alive_at = tokio::time::Instant::now();
            }
            for event in events {
                self.take(Message::parse(&event.data)?).await?;
                if self.story.is_closing() {
                    return Ok(());
                }
                // The application may have been slow. That does not count as silence of the server.
                alive_at = tokio::time::Instant::now();
            }
        }
    }

    async fn long_poll(&mut self, is_accepted: &mut bool) -> Result<(), Trouble> {
        let wait = self.story.poll_wait().as_secs();
        let request = self.request(Some(wait)).header(ACCEPT, "application/json");
        let mut response = self.open(request, "application/json").await?;
        *is_accepted = true;
        let mut body = Vec::new();
        loop {
            let silence = self.pace.real(self.story.silence());
            let chunk = timeout(silence, response.chunk()).await;
            let chunk = chunk.map_err(|_| Trouble::Silent)?;
            let Some(chunk) = chunk? else {
                break;
            };
            body.extend_from_slice(&chunk);
            if body.len() > MESSAGE_MAX_BYTES {
                return Err(ClientError::Unreadable("an answer is too large".into()).into());
            }
        }
        let unreadable =
            || ClientError::Unreadable("the answer to a poll has no `messages`".into());
        let answer: Value = serde_json::from_slice(&body).map_err(|_| unreadable())?;
        let Value::Object(mut answer) = answer else {
            return Err(unreadable().into());
        };
        let Some(Value::Array(messages)) = answer.remove("messages") else {
            return Err(unreadable().into());
        };
        for message in messages {
            self.take(Message::from_value(message)?).await?;
            if self.story.is_closing() {
                break;
            }
        }
        Ok(())
    }

    /// Returns a request for the scope. A poll says how many seconds it waits.
    fn request(&self, wait: Option<u64>) -> Request {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let wait = wait.map(|secs| ("wait".to_owned(), secs.to_string()));
        let pairs = self.query.iter().chain(&wait);
        let pairs = pairs.map(|(name, value)| format!("{}={}", encoded(name), encoded(value)));
        let query: Vec<String> = pairs.collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let path = format!("{}{mark}{}", self.path, query.join("&"));
        self.client.request(Method::GET, &path)
    }

    /// Sends the request, and checks that its answer is of this type.
    async fn open(&mut self, mut request: Request, media_type: &str) -> Result<Answer, Trouble> {
        if let Some(cursor) = self.story.cursor() {
            request = request.header(HeaderName::from_static("last-event-id"), cursor);
        }
        let longest = self.pace.real(self.story.silence() + CONNECT);
        let response = timeout(longest, self.client.send(request)).await;
        let response = response.map_err(|_| Trouble::Silent)??;
        if response.status >= 300 {
            return Err(Trouble::Rejected(
                rejection(response, longest, self.client.base()).await,
            ));
        }
        let content_type = response.header(CONTENT_TYPE);
        match response.status == 200
            && content_type.is_some_and(|value| value.starts_with(media_type))
        {
            true => Ok(response),
            false => Err(Trouble::NotThisTransport),
        }
    }

    /// Processes a message, and passes on what the application gets. The first message of a connection shows
    /// that it is up.
    async fn take(&mut self, message: Message) -> Result<(), Trouble> {
        let before = self.story.cursor().map(str::to_owned);
        let received = self.story.receive(message);
        if !std::mem::replace(&mut self.is_up, true) {
            let up = Item::State(Event::Connected(self.story.transport()));
            self.items.send(up).await.map_err(|_| Trouble::Left)?;
        }
        let cursor = self.story.cursor().map(str::to_owned);
        let item = match (received, cursor) {
            (Received::Message(message), cursor) => Item::Message(message, cursor),
            (Received::Control(message), cursor) => Item::Control(message, cursor),
            (Received::Nothing, Some(cursor)) if before.as_ref() != Some(&cursor) => {
                Item::Cursor(cursor)
            }
            (Received::Nothing, _) => return Ok(()),
        };
        self.items.send(item).await.map_err(|_| Trouble::Left)
    }
}
