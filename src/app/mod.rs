//! The use cases *publish* and *subscribe*, for every kind of caller.
//!
//! The permissions and rate limits of publishing, and the permissions of opening a stream, are enforced here and nowhere else.
//! They apply alike to HTTP calls, lines of a batch, forms of the monitor, and the code of an application that embeds Tidings.
//! Reads over HTTP, and the rate of a stream's messages, are checked by their adapters. The adapters above this layer
//! read requests and write answers; [`PublishService`] and [`SubscribeService`] authorize, rate-limit and trace each request
//! once.
//!
//! Deliberately absent: Rocket, HTTP statuses, bodies and their encodings.

mod batch;
mod caller;
mod pings;
mod publish;
mod stopping;
mod subscribe;
mod violations;

pub use self::batch::{Answer, Batch, BatchItem};
pub use self::caller::Caller;
pub use self::pings::{
    EXIT_CODE, Ending, NoReport, Ping, PingCaller, PingRejected, PingService, Plan, Report,
    SUPERSEDED_CODE,
};
pub use self::publish::{Admission, PublishService, Rejected, TooFast};
pub use self::stopping::Stopping;
pub use self::subscribe::{Listen, SubscribeService};
pub use self::violations::{ViolationAction, ViolationCommand};
