//! The token with which a command talks to a server: `TIDINGS_TOKEN`, or `--token`; and the school that it names, if the token covers several.

use super::{Exit, Failure};
use crate::config::Secret;
use crate::id::SchoolId;

/// The variable with the school.
pub(super) const SCHOOL_VARIABLE: &str = "TIDINGS_SCHOOL_ID";

/// Checks a token. An empty variable counts as unset. Not checked by clap, whose error would show the token.
pub(super) fn token(token: Option<Secret>) -> Result<Option<Secret>, Failure> {
    let token = token.filter(|token| !token.reveal().is_empty());
    if token
        .as_ref()
        .is_some_and(|token| !is_visible(token.reveal()))
    {
        let problem = "the token (--token, TIDINGS_TOKEN) has characters that no token contains, such as spaces or line breaks";
        return Err(Failure::new(Exit::Usage, problem));
    }
    Ok(token)
}

/// Parses a school. An empty variable counts as unset. Not parsed by clap, so that `tidings run` can run its command all the same.
pub(super) fn school(text: Option<&str>) -> Result<Option<SchoolId>, Failure> {
    let text = text.filter(|text| !text.is_empty());
    text.map(str::parse).transpose().map_err(|error| {
        let problem = format!("the school (--school, {SCHOOL_VARIABLE}): {error}");
        Failure::new(Exit::Usage, problem)
    })
}

/// Whether a text is valid in a header: visible ASCII.
pub(super) fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}
