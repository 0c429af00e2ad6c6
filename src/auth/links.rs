//! Signed links: URLs that show one scope of one school to anyone who has them, without a token.
//!
//! A link is not stored. Its signature covers everything that it allows: the school, the channel, the [`View`] and the
//! expiry. It is made with a key that is derived for links alone, so a link is never accepted as a token or a ticket, and a
//! link to one view never opens another. A link is revoked by its expiry, or together with all others by changing the secret.

use chrono::{DateTime, Utc};
use jsonwebtoken::Algorithm;

use super::{Access, AuthError, KeyError, Keys, Role, Schools};
use crate::config::LINK_SIGNATURE_MAX_BYTES;
use crate::id::{Channel, SchoolId};

/// What a link shows of its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// An image of the state and the percentage.
    Badge,
    /// A page with everything that a viewer sees, live.
    Embed,
}

impl View {
    /// Every view.
    pub const ALL: [View; 2] = [View::Badge, View::Embed];

    /// Returns the name in URLs and requests.
    pub fn as_str(self) -> &'static str {
        match self {
            View::Badge => "badge",
            View::Embed => "embed",
        }
    }

    /// Parses the text that [`View::as_str`] returns.
    pub fn parse(text: &str) -> Option<View> {
        View::ALL.into_iter().find(|view| view.as_str() == text)
    }
}

/// What a link allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The school.
    pub school: SchoolId,
    /// The channel.
    pub channel: Channel,
    /// What it shows of the channel.
    pub view: View,
    /// When it expires, in seconds since 1970; `None` means never.
    pub expires: Option<i64>,
}

impl Link {
    /// Returns what is signed. No part can contain a line break, so two links never have the same text.
    fn text(&self) -> String {
        let expires = self.expires.map_or(String::new(), |at| at.to_string());
        let (view, school, channel) = (self.view.as_str(), self.school, &self.channel);
        format!("{view}\n{school}\n{channel}\n{expires}")
    }

    /// Returns when the link expires, if it does.
    pub fn expires_at(&self) -> Option<DateTime<Utc>> {
        // A time that cannot be represented is so far away that it makes no difference.
        self.expires.and_then(|at| DateTime::from_timestamp(at, 0))
    }
}

impl Keys {
    /// Returns the signature of a link. The caller must have checked that its creator may share all that it allows.
    pub fn sign_link(&self, link: &Link) -> Result<String, KeyError> {
        let text = link.text();
        jsonwebtoken::crypto::sign(text.as_bytes(), &self.link_sign, Algorithm::HS256)
            .map_err(KeyError::Sign)
    }

    /// Returns what a link allows, if the signature matches: to watch its channel until it expires.
    pub fn verify_link(&self, link: &Link, signature: &str) -> Result<Access, AuthError> {
        // Check the length before computing anything: anyone can send a signature of any length.
        let fits = signature.len() <= LINK_SIGNATURE_MAX_BYTES;
        let verify = || {
            let text = link.text();
            jsonwebtoken::crypto::verify(
                signature,
                text.as_bytes(),
                &self.link_verify,
                Algorithm::HS256,
            )
        };
        if !fits || !verify().unwrap_or(false) {
            return Err(AuthError::InvalidLink);
        }
        if link.expires.is_some_and(|at| at <= Utc::now().timestamp()) {
            return Err(AuthError::ExpiredLink);
        }
        Ok(Access {
            subject: format!("link:{}", link.channel).into(),
            schools: Schools::One(link.school),
            role: Role::Viewer,
            channels: Some([link.channel.clone()].into()),
            expires_at: link.expires_at(),
            reconnects_until: None,
        })
    }
}
