//! What settings say of tokens: roles, and where their claims are.

use serde::{Deserialize, Serialize};

/// The school's claim in tokens that are made for Tidings.
pub(crate) const SCHOOL_CLAIM: &str = "school_id";
/// The longest name of a claim, or pointer to one, in bytes.
const PLACE_MAX_BYTES: usize = 128;
/// HS256 wants a key at least as long as its digest (RFC 7518, 3.2).
pub const SECRET_MIN_BYTES: usize = 32;

/// What somebody may do. Each role may do what the one before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Watch.
    Viewer,
    /// Report.
    Worker,
    /// Everything.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 3] = [Role::Viewer, Role::Worker, Role::Admin];

    /// Its name in tokens and settings.
    pub fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Worker => "worker",
            Role::Admin => "admin",
        }
    }

    /// The role of this name.
    pub fn by_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// What is wrong with a text as a claim's place.
pub(super) fn check_place(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.len() > PLACE_MAX_BYTES || text.chars().any(char::is_control) {
        return Err("is not a claim's name, or a JSON pointer to one, of 1 to 128 bytes");
    }
    let escapes = text.split('~').skip(1);
    if text.starts_with('/')
        && escapes
            .into_iter()
            .any(|rest| !rest.starts_with(['0', '1']))
    {
        return Err("is not a JSON pointer: after `~` comes 0 or 1 (RFC 6901)");
    }
    Ok(())
}
