//! Publishing and subscribing for anybody.
//!
//! Who may do what, and how fast, is decided here and nowhere else: for HTTP calls, lines of a batch, forms of the monitor,
//! messages of a stream, and the code of an application that has Tidings built in. The adapters above read requests and write
//! answers; [`PublishService`] and [`SubscribeService`] authorize, rate-limit and trace what they ask for, once.
//!
//! Deliberately absent: Rocket, HTTP statuses, bodies and their encodings.

mod batch;
mod caller;
mod publish;
mod stopping;
mod subscribe;
mod violations;

pub use self::batch::{Answer, Batch, BatchItem};
pub use self::caller::Caller;
pub use self::publish::{Admission, PublishService, Refused, TooFast};
pub use self::stopping::Stopping;
pub use self::subscribe::{Listen, SubscribeService};
pub use self::violations::{ViolationAction, ViolationCommand};
