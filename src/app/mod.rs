//! The use cases *publish*, *subscribe* and *read*, for every kind of caller.
//!
//! The permissions and rate limits of publishing, and the permissions of opening a stream and of reading through the API, are
//! enforced here and nowhere else. They apply alike to HTTP calls, lines of a batch, forms of the monitor, and the code of an
//! application that embeds Tidings. The adapters above this layer read requests and write answers; [`PublishService`],
//! [`SubscribeService`] and [`ReadService`] authorize each request once. A stream is opened only for an [`AllowedScope`], and
//! notifiers are read only with a [`NotifiersOf`], which nothing else can create.
//!
//! The adapters check what has no use case here: a page of the monitor omits what its visitor may not see, a ticket or a link
//! covers only what its creator may read, `/metrics` is for unrestricted administrators, and the rate of a stream's messages
//! is limited where they arrive. `tests/it/exemptions.rs` lists the HTTP modules that read the store themselves.
//!
//! Deliberately absent: Rocket, HTTP statuses, bodies and their encodings.

mod batch;
mod caller;
mod pings;
mod publish;
mod read;
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
pub use self::read::{NotifiersOf, ReadService};
pub use self::stopping::Stopping;
pub(crate) use self::subscribe::uncovered;
pub use self::subscribe::{AllowedScope, Listen, SubscribeService};
pub use self::violations::{ViolationAction, ViolationCommand};
