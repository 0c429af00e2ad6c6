//! How a client receives: from a subscription, as over a one-way transport, or from a session, as over a WebSocket.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use chrono::{TimeDelta, Utc};
use futures_util::Stream;
use serde_json::{Map, Value, json};
use tidings::app::{Stopping, SubscribeService};
use tidings::auth::{Access, Claims, Keys, Role, Schools};
use tidings::config::{Secret, Settings};
use tidings::id::{Channel, Cursor, SchoolId};
use tidings::log::Store;
use tidings::rejections::RequestSource;
use tidings::session::{self, Beginning, Dialect, Outbox, Outgoing};
use tidings::subscribe::{Delivery, Subscriber, Subscription};
use tidings::wire::Control;

/// What sessions need of a server.
pub(super) struct Sessions {
    service: Arc<SubscribeService>,
    /// A token with which a client renews its credential. It outlives the simulation.
    token: Secret,
}

/// A client's connection.
pub(super) enum Line {
    Subscription(Box<Subscription>),
    Session(Box<Talk>),
}

/// A session, and what it has sent.
pub(super) struct Talk {
    session: session::Session,
    sent: Sent,
    token: Secret,
}

/// Messages that the client has not taken yet. There is room for one, so that the client can stall after each.
#[derive(Default)]
struct Sent(VecDeque<Delivery>);

impl Outbox for Sent {
    fn has_room(&self) -> bool {
        self.0.is_empty()
    }

    fn send(&mut self, outgoing: Outgoing<'_>) {
        self.0.push_back(match outgoing {
            Outgoing::Event(event) => Delivery::Event(Arc::clone(event)),
            Outgoing::Control(control) => Delivery::Control(control.clone()),
            // Pings are the heartbeats of this dialect.
            Outgoing::Ping(cursor) => Delivery::Control(Control::Heartbeat {
                cursor,
                at: Utc::now(),
            }),
            Outgoing::Json(_) | Outgoing::BarePong => unreachable!("this dialect has neither"),
        });
    }
}

impl Sessions {
    pub(super) fn new(
        store: Arc<dyn Store>,
        subscriber: Subscriber,
        settings: &Settings,
    ) -> Sessions {
        let settings = Settings {
            jwt_secret: Some("a secret of a simulation, long enough".into()),
            ..settings.clone()
        };
        let keys = Arc::new(Keys::from_settings(&settings).unwrap());
        let claims = Claims {
            sub: "reader".into(),
            school_id: None,
            schools: None,
            role: Role::Admin,
            channels: None,
            exp: (Utc::now() + TimeDelta::days(1)).timestamp() as f64,
            iat: None,
            iss: None,
            aud: None,
        };
        let token = keys.mint(claims).unwrap();
        let service = SubscribeService::new(
            store,
            keys,
            subscriber,
            Arc::new(Stopping::new(0)),
            (Arc::default(), Arc::default()),
            Arc::new(settings),
        );
        Sessions {
            service: Arc::new(service),
            token,
        }
    }

    /// Begins a session with this subscription.
    pub(super) fn begin(&self, school: SchoolId, subscription: Subscription) -> Line {
        let access = Access {
            subject: "reader".into(),
            schools: Schools::One(school),
            role: Role::Viewer,
            channels: None,
            expires_at: None,
            reconnects_until: None,
        };
        let beginning = Beginning {
            source: RequestSource::new("/simulation", None),
            access,
            subscription,
            from: None,
        };
        Line::Session(Box::new(Talk {
            session: session::Session::new(Arc::clone(&self.service), Dialect::EVENTS, beginning),
            sent: Sent::default(),
            token: self.token.clone(),
        }))
    }
}

impl Line {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        match self {
            Line::Subscription(subscription) => {
                // As each transport does before it takes a delivery.
                subscription.end_if_expired();
                Pin::new(&mut **subscription).poll_next(cx)
            }
            Line::Session(talk) => talk.poll(cx),
        }
    }

    pub(super) fn resume_cursor(&self) -> Option<Cursor> {
        match self {
            Line::Subscription(subscription) => subscription.resume_cursor(),
            Line::Session(talk) => talk.session.resume_cursor(),
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        match self {
            Line::Subscription(subscription) => subscription.is_busy(),
            Line::Session(talk) => talk.session.is_busy(),
        }
    }

    pub(super) fn subscribe(&mut self, channel: Channel, cursor: Option<Cursor>) {
        match self {
            Line::Subscription(subscription) => {
                subscription.subscribe(vec![channel], cursor, Map::new(), None);
            }
            Line::Session(talk) => {
                let cursor = cursor.map(|cursor| cursor.to_string());
                let channels = [channel.to_string()];
                talk.say(&json!({"type": "subscribe", "channels": channels, "cursor": cursor}));
            }
        }
    }

    pub(super) fn unsubscribe(&mut self, channel: Channel) {
        match self {
            Line::Subscription(subscription) => subscription.unsubscribe(&[channel], Map::new()),
            Line::Session(talk) => {
                let channels = [channel.to_string()];
                talk.say(&json!({"type": "unsubscribe", "channels": channels}));
            }
        }
    }

    /// Renews the client's credential, if the client can. Returns whether it can.
    pub(super) fn renew(&mut self) -> bool {
        match self {
            Line::Subscription(_) => false,
            Line::Session(talk) => {
                talk.say(&json!({"type": "auth", "token": talk.token.reveal()}));
                true
            }
        }
    }
}

impl Talk {
    fn say(&mut self, message: &Value) {
        self.session.receive(&message.to_string(), &mut self.sent);
    }

    /// Returns the next message. Like a transport, it looks for deliveries first, and then for answers.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        loop {
            if let Some(next) = self.sent.0.pop_front() {
                return Poll::Ready(Some(next));
            }
            if self.session.ended().is_some() {
                return Poll::Ready(None);
            }
            let any = self.session.poll_deliveries(cx, &mut self.sent)
                || self.session.poll_answer(cx, &mut self.sent) == Poll::Ready(true)
                || self.session.resume(&mut self.sent);
            if !any {
                return Poll::Pending;
            }
        }
    }
}
