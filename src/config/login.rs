//! What the settings say about tokens: roles, and the claims that hold them.

use serde::{Deserialize, Serialize};

/// The school's claim in tokens that are made for Tidings.
pub(crate) const SCHOOL_CLAIM: &str = "school_id";
/// Maximum length of a claim's name, or of a JSON pointer to a claim, in bytes.
const PLACE_MAX_BYTES: usize = 128;
/// HS256 requires a key that is at least as long as its digest (RFC 7518, 3.2).
pub const SECRET_MIN_BYTES: usize = 32;

/// What the bearer of a token is allowed to do. Each role includes the permissions of the previous one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Can watch.
    Viewer,
    /// Can also report.
    Worker,
    /// Can do everything.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 3] = [Role::Viewer, Role::Worker, Role::Admin];

    /// Returns the role's name in tokens and settings.
    pub fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Worker => "worker",
            Role::Admin => "admin",
        }
    }

    /// Returns the role with this name.
    pub fn by_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// Checks that a text can locate a claim. The error says what is wrong.
pub(super) fn check_place(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > PLACE_MAX_BYTES || text.chars().any(char::is_control) {
        return Err(
            "must be the name of a claim, or a JSON pointer to one, with 1 to 128 bytes and no control characters",
        );
    }
    let escapes = text.split('~').skip(1);
    if text.starts_with('/')
        && escapes
            .into_iter()
            .any(|rest| !rest.starts_with(['0', '1']))
    {
        return Err("is not a valid JSON pointer: `~` must be followed by 0 or 1 (RFC 6901)");
    }
    Ok(())
}
