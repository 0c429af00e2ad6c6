//! The use cases *publish*, *subscribe*, *read* and *grant*, for every kind of caller.
//!
//! The permissions and rate limits of publishing, and the permissions of opening a stream, of reading, and of creating tickets
//! and links, are enforced here and nowhere else. They apply alike to HTTP calls, lines of a batch, pages and forms of the
//! monitor, badges, pings, and the code of an application that embeds Tidings. The adapters above this layer read requests
//! and write answers; [`PublishService`], [`SubscribeService`], [`ReadService`] and [`GrantService`] authorize each request.
//! A stream is opened only for an [`AllowedScope`], notifiers are read only with a [`NotifiersOf`], and the whole server only
//! with a [`WholeServer`], which nothing else can create. Only `/metrics` and the page of the whole server read the store
//! itself, with that proof; `tests/it/exemptions.rs` checks that no other HTTP module does.
//!
//! The rate limit on messages from a stream's client is enforced where they arrive, not here.
//!
//! This layer does not depend on Rocket, HTTP statuses, bodies or their encodings.

mod batch;
mod caller;
mod grants;
mod pings;
mod publish;
mod read;
mod stopping;
mod subscribe;
mod violations;

pub use self::batch::{Answer, Batch, BatchItem};
pub use self::caller::Caller;
pub use self::grants::{GrantRejected, GrantService, SignedLink};
pub use self::pings::{
    EXIT_CODE, Ending, NoReport, Ping, PingCaller, PingRejected, PingService, Plan, Report,
    SUPERSEDED_CODE,
};
pub use self::publish::{Admission, PublishService, Rejected, TooFast};
pub use self::read::{NotifiersOf, ReadService, WholeServer};
pub use self::stopping::Stopping;
pub(crate) use self::subscribe::uncovered;
pub use self::subscribe::{AllowedScope, Listen, SubscribeService};
pub use self::violations::{ViolationAction, ViolationCommand};
