//! The use case *grant*: tickets and signed links. They open only what their creator may read.

use std::sync::Arc;

use chrono::Utc;

use super::caller::Caller;
use crate::auth::{AuthError, KeyError, Keys, Link, Role, Ticket, View};
use crate::id::Channel;
use crate::log::Store;

/// Creates tickets and signed links on behalf of callers.
pub struct GrantService {
    store: Arc<dyn Store>,
    keys: Arc<Keys>,
}

/// Why a ticket or a link was not created.
#[derive(Debug, thiserror::Error)]
pub enum GrantRejected {
    /// The credential does not allow it.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The ticket or the link could not be signed.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A link, and its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedLink {
    /// What the link shows, and until when.
    pub link: Link,
    /// The signature, in base64url.
    pub signature: String,
}

impl GrantService {
    /// Creates a service that signs with these keys.
    pub fn new(store: Arc<dyn Store>, keys: Arc<Keys>) -> GrantService {
        GrantService { store, keys }
    }

    /// Issues a ticket that opens streams of these channels of the caller's school.
    pub fn ticket(&self, caller: &Caller, channels: &[Channel]) -> Result<Ticket, GrantRejected> {
        for channel in channels {
            caller.authorize(channel)?;
        }
        let made = (self.store.epoch(), Utc::now());
        let ticket = self
            .keys
            .ticket(caller.access(), caller.school(), channels, made)?;
        Ok(ticket)
    }

    /// Signs a link to a view of a channel of the caller's school. It expires at `expires`, in seconds since 1970, or never.
    /// The link of a caller who is not an admin expires with the credential at the latest.
    pub fn link(
        &self,
        caller: &Caller,
        channel: Channel,
        view: View,
        expires: Option<i64>,
    ) -> Result<SignedLink, GrantRejected> {
        caller.authorize(&channel)?;
        let expires = match (caller.require(Role::Admin), caller.access().expires_at) {
            (Ok(()), _) => expires,
            (Err(_), Some(end)) => {
                let end = end.timestamp();
                Some(expires.map_or(end, |at| at.min(end)))
            }
            // The caller has no token, but access through `anonymous_school_id`. The link would outlive that setting.
            (Err(error), None) => return Err(error.into()),
        };
        let link = Link {
            school: caller.school(),
            expires,
            channel,
            view,
        };
        let signature = self.keys.sign_link(&link)?;
        tracing::info!(
            school = %link.school,
            channel = %link.channel,
            view = view.as_str(),
            expires = link.expires,
            by = &**caller.name(),
            "a signed link was created"
        );
        Ok(SignedLink { link, signature })
    }
}
